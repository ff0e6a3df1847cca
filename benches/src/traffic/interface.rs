//! The kernel's own drop counters of an interface, so that its losses are not taken for ours.
#![forbid(unsafe_code)]

use std::fs;
use std::io;

/// Drops of one interface since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterfaceDrops {
    /// Received and then dropped.
    pub rx_pkts: u64,
    /// Dropped instead of sent: on veth also what the other end had no room for.
    pub tx_pkts: u64,
}

impl InterfaceDrops {
    /// Reads them, in this thread's network namespace.
    ///
    /// # Errors
    /// `NotFound` when there is no such interface.
    pub fn read(interface: &str) -> io::Result<Self> {
        // Not sysfs: that shows the namespace in which it was mounted.
        let table = fs::read_to_string("/proc/thread-self/net/dev")?;
        Self::parse(&table, interface).ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("no interface {interface} here"))
        })
    }

    /// How many since `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            rx_pkts: self.rx_pkts.saturating_sub(before.rx_pkts),
            tx_pkts: self.tx_pkts.saturating_sub(before.tx_pkts),
        }
    }

    /// `table`: as in proc_pid_net(5), eight columns for each direction, drops in the fourth.
    fn parse(table: &str, interface: &str) -> Option<Self> {
        let rows = table.lines().filter_map(|line| line.split_once(':'));
        let (_, row) = rows.into_iter().find(|(name, _)| name.trim() == interface)?;
        let column = |at: usize| row.split_whitespace().nth(at)?.parse().ok();
        Some(Self { rx_pkts: column(3)?, tx_pkts: column(8 + 3)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       2    0    3    0     0          0         0      100       2    0    4    0     0       0          0
mrl-a0: 9999999      99    0   17    0     0          0         0     1234      12    0   21    0     0       0          0
";

    #[test]
    fn drops_stand_in_the_fourth_column_of_each_direction() {
        let drops = InterfaceDrops::parse(TABLE, "mrl-a0");
        assert_eq!(drops, Some(InterfaceDrops { rx_pkts: 17, tx_pkts: 21 }));
        assert_eq!(InterfaceDrops::parse(TABLE, "mrl-a"), None);
    }

    #[test]
    fn every_namespace_has_a_loopback() {
        assert!(InterfaceDrops::read("lo").is_ok());
    }
}
