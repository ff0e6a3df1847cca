//! The stock of empty buffers of an NF that makes packets of its own: for each that is used the worker
//! whose buffer it was is asked for another, and all go back when a worker recalls them.
//!
//! A worker recalls what it lent when chains change: a buffer in stock stands for a packet of an older
//! plan, which the change would wait for.
#![forbid(unsafe_code)]

use crate::engine::Engine;
use crate::nf::NetworkFunction;
use crate::shm::Channel;

/// Whether a worker has recalled its loans, and the NF has not heard of it.
#[inline]
pub(super) fn is_recalled<N: NetworkFunction>(engine: &Engine<N>, channel: &Channel) -> bool {
    engine.has_stock() && !engine.knows_recalls(recalls(channel))
}

/// Takes notice of recalls. Returns whether there are buffers to be passed on.
pub(super) fn heed_recalls<N: NetworkFunction>(engine: &mut Engine<N>, channel: &Channel) -> bool {
    engine.note_recalls(recalls(channel))
}

fn recalls(channel: &Channel) -> impl Iterator<Item = u32> {
    let workers = channel.geometry().workers.min(Channel::MAX_LENDING_WORKERS);
    (0..workers).map(|worker| channel.recalls(worker))
}

/// Asks for as many buffers as were used, each of the worker that it belongs to: buffer `b` is that of
/// worker `b / worker_buffers`. Calls `wake` for each that was asked.
pub(super) fn ask_for_more<N: NetworkFunction>(
    engine: &mut Engine<N>,
    channel: &Channel,
    worker_buffers: u32,
    mut wake: impl FnMut(u16),
) {
    let used = engine.used_stock();
    // Mostly all are of one worker.
    used.sort_unstable();
    for of_one in used.chunk_by(|a, b| a / worker_buffers == b / worker_buffers) {
        let worker = u16::try_from(of_one[0] / worker_buffers).unwrap_or(u16::MAX);
        channel.ask_for(worker, of_one.len() as u64);
        wake(worker);
    }
    used.clear();
}
