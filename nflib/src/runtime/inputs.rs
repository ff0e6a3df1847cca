//! Where an NF's packets come from: a ring from each worker of the manager, and a direct edge from
//! each NF that may come before.
#![forbid(unsafe_code)]

use crate::descriptor::Delivery;
use crate::shm::{Consumer, RingMemory};

/// Who pushes to an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A worker of the manager.
    Lane,
    /// Another NF; edges are numbered as they come. `closing` when it pushes no more.
    Edge { nf: u16, number: u64, closing: bool },
}

/// One ring to read.
pub(crate) struct Input<M> {
    pub(crate) ring: Consumer<Delivery, M>,
    pub(crate) source: Source,
}

/// All inputs, each looked at once a turn.
pub(crate) struct Inputs<M> {
    pub(crate) all: Vec<Input<M>>,
    /// Whose turn it is.
    at: usize,
    /// Edges opened so far.
    edges: u64,
}

impl<M: RingMemory> Inputs<M> {
    pub(crate) fn new(lanes: impl Iterator<Item = Consumer<Delivery, M>>) -> Self {
        let all = lanes.map(|ring| Input { ring, source: Source::Lane }).collect();
        Self { all, at: 0, edges: 0 }
    }

    /// The input whose turn it is; the next call gives the one after it. There is at least one.
    #[inline]
    pub(crate) fn next(&mut self) -> usize {
        if self.at >= self.all.len() {
            self.at = 0;
        }
        self.at += 1;
        self.at - 1
    }

    /// True when nothing waits anywhere.
    pub(crate) fn are_empty(&self) -> bool {
        self.all.iter().all(|input| input.ring.is_empty())
    }

    /// Reads a ring from an NF from now on, beside one that this NF number may have already: who
    /// pushes there has not heard yet of the new one.
    pub(crate) fn open_edge(&mut self, nf: u16, ring: Consumer<Delivery, M>) {
        let source = Source::Edge { nf, number: self.edges, closing: false };
        self.edges += 1;
        self.all.push(Input { ring, source });
    }

    /// The oldest ring from this NF gets nothing more: it is forgotten once it is empty. False when
    /// there is none.
    pub(crate) fn close_edge(&mut self, nf: u16) -> bool {
        let of_nf = |&source: &Source| match source {
            Source::Edge { nf: from, number, closing: false } if from == nf => Some(number),
            _ => None,
        };
        let sources = self.all.iter_mut().map(|input| &mut input.source);
        match sources.filter(|s| of_nf(s).is_some()).min_by_key(|s| of_nf(s)) {
            Some(Source::Edge { closing, .. }) => {
                *closing = true;
                true
            }
            _ => false,
        }
    }

    /// Forgets an input. Its place is taken by the last, which is looked at next.
    pub(crate) fn forget(&mut self, number: usize) {
        self.all.swap_remove(number);
        self.at = number;
    }
}
