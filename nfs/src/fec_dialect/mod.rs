//! Forward error correction as others speak it, for links of which one end is theirs.
//!
//! Both NFs work on UDP datagrams in place, let everything else pass, and make datagrams of their own in
//! empty buffers.
#![forbid(unsafe_code)]

mod datagram;
pub mod kcptun;
mod sessions;
pub mod smpte;

use std::fmt::Write as _;

use nflib::{Action, Context};

use crate::tunnel::stock::Stock;
use datagram::Template;

/// Counts by name, in the order of a settings' line.
type Counts = Vec<(&'static str, u64)>;

/// Adds counts to others of the same names.
fn add(to: &mut Counts, from: &[(&'static str, u64)]) {
    for &(name, count) in from {
        match to.iter_mut().find(|(other, _)| *other == name) {
            Some((_, sum)) => *sum += count,
            None => to.push((name, count)),
        }
    }
}

/// Counts as the text of a setting: `name=count`, with blanks between.
fn text(counts: &Counts) -> String {
    let mut text = String::new();
    for (name, count) in counts {
        let blank = if text.is_empty() { "" } else { " " };
        // Writing to a String cannot fail.
        let _ = write!(text, "{blank}{name}={count}");
    }
    text
}

/// Sends a datagram that was made, where there is a buffer for it.
fn send(
    stock: &mut Stock,
    template: &Template,
    payload: &[u8],
    flow_hash: u32,
    ctx: &mut Context<'_>,
) {
    let Some(id) = stock.make(ctx, &[template.headers(), payload]) else { return };
    let action = match ctx.held(id) {
        Ok(mut packet) => {
            packet.set_flow_hash(flow_hash);
            if template.finish(packet.bytes_mut()) { Action::Next } else { Action::Drop }
        }
        Err(_) => return,
    };
    // It is held: it was a moment ago.
    let _ = ctx.release(id, action);
}
