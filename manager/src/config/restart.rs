//! Which keys of a file only count when the manager starts.
#![forbid(unsafe_code)]

use super::{Config, ManagerConfig, PoolConfig, PortConfig};

impl Config {
    /// Why this configuration cannot follow on `running` without a restart: one line that names
    /// each key of `[manager]`, `[pool]` and `[[port]]` that differs. `None` when services, chains
    /// and rules are all that may differ.
    #[must_use]
    pub fn needs_restart(&self, running: &Self) -> Option<String> {
        let mut keys = Vec::new();
        manager_keys(&running.manager, &self.manager, &mut keys);
        pool_keys(&running.pool, &self.pool, &mut keys);
        port_keys(&running.ports, &self.ports, &mut keys);
        if keys.is_empty() {
            return None;
        }
        Some(format!("needs a restart: {} (millrace down, then up)", keys.join(", ")))
    }
}

/// Names of the fields that differ. Every field is listed, or this does not compile.
macro_rules! differing {
    ($type:ident { $($field:ident),+ $(,)? }, $old:expr, $new:expr) => {{
        let $type { $($field),+ } = $old;
        [$((stringify!($field), *$field != $new.$field)),+]
            .into_iter()
            .filter(|(_, differs)| *differs)
            .map(|(name, _)| name)
    }};
}

fn manager_keys(old: &ManagerConfig, new: &ManagerConfig, keys: &mut Vec<String>) {
    let fields = differing!(
        ManagerConfig {
            socket,
            socket_group,
            workers,
            cores,
            poll,
            quantum_pkts,
            ring_capacity,
            drain_ms,
            answer_limit_ms,
            wait_for_nfs,
            flow_cache,
            track_flows,
            latency_interval_us,
            journal,
            recorder_pkts,
            recorder_bytes,
            crash_dir,
            crash_bundles,
            crash_bytes,
        },
        old,
        new
    );
    keys.extend(fields.map(|field| format!("manager.{field}")));
}

fn pool_keys(old: &PoolConfig, new: &PoolConfig, keys: &mut Vec<String>) {
    let fields = differing!(
        PoolConfig { buffers, buffer_bytes, headroom_bytes, hugepages, credit_pkts },
        old,
        new
    );
    keys.extend(fields.map(|field| format!("pool.{field}")));
}

fn port_keys(old: &[PortConfig], new: &[PortConfig], keys: &mut Vec<String>) {
    let find = |ports: &[PortConfig], name: &str| ports.iter().any(|port| port.name == name);
    let before = keys.len();
    keys.extend(
        new.iter()
            .filter(|port| !find(old, &port.name))
            .map(|port| format!("port {:?} is new", port.name)),
    );
    keys.extend(
        old.iter()
            .filter(|port| !find(new, &port.name))
            .map(|port| format!("port {:?} is gone", port.name)),
    );
    if keys.len() > before {
        return; // The numbers of ports have changed, and with them every egress.
    }
    if old.iter().zip(new).any(|(old, new)| old.name != new.name) {
        keys.push("the order of [[port]]".into());
        return;
    }
    for (old, new) in old.iter().zip(new) {
        keys.extend(
            keys_of_port(old, new).into_iter().map(|key| format!("port {:?}: {key}", old.name)),
        );
    }
}

/// Keys of one port that differ.
fn keys_of_port(old: &PortConfig, new: &PortConfig) -> Vec<String> {
    let mut keys = Vec::new();
    if old.egress != new.egress {
        keys.push("egress".into());
    }
    if old.fault != new.fault {
        keys.push("fault".into());
    }
    if old.backend == new.backend {
        return keys;
    }
    if std::mem::discriminant(&old.backend) != std::mem::discriminant(&new.backend) {
        keys.push("backend".into());
        return keys;
    }
    let all =
        old.written.keys().chain(new.written.keys().filter(|k| !old.written.contains_key(*k)));
    keys.extend(all.filter(|key| old.written.get(*key) != new.written.get(*key)).cloned());
    keys
}
