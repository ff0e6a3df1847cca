//! What is seen of packets, gathered from workers and NFs and made readable.
#![forbid(unsafe_code)]

pub mod pcapng;
