//! `millrace check`, `diff` and `apply`: a configuration file against itself, and against what runs.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use millrace::config::Config;
use nflib::control::{ChainSpec, Request, ServiceSpec};
use serde::Serialize;

use crate::applied::{self, Mood};
use crate::{Globals, chain, print};

#[derive(Args)]
pub struct CheckOptions {
    /// The configuration file
    file: PathBuf,
}

#[derive(Args)]
pub struct DiffOptions {
    /// The configuration file
    file: PathBuf,
}

#[derive(Args)]
pub struct ApplyOptions {
    /// The configuration file
    file: PathBuf,
    /// Only say what would change, as `millrace diff` does
    #[arg(long)]
    dry_run: bool,
}

/// What a good file says.
#[derive(Serialize)]
struct Summary {
    file: PathBuf,
    socket: PathBuf,
    workers: u16,
    buffers: u32,
    buffer_bytes: u32,
    ports: Vec<String>,
    /// With those that only a chain names.
    services: Vec<ServiceSpec>,
    chains: Vec<ChainSpec>,
    rules: usize,
    notes: Vec<String>,
}

impl Summary {
    fn of(config: &Config, file: &Path) -> Self {
        Self {
            file: file.to_owned(),
            socket: config.manager.socket.clone(),
            workers: config.manager.workers,
            buffers: config.pool.buffers,
            buffer_bytes: config.pool.buffer_bytes,
            ports: config.ports.iter().map(|port| port.name.clone()).collect(),
            services: config.model.services().map(|service| service.spec.clone()).collect(),
            chains: config.model.chains().map(|chain| chain.spec.clone()).collect(),
            rules: config.model.rule_count(),
            notes: config.notes.clone(),
        }
    }

    fn show(&self) -> String {
        let Self { workers, buffers, buffer_bytes, rules, .. } = self;
        let mut out = format!("{}: good\n", self.file.display());
        let mut line = |label: &str, text: &str| _ = writeln!(out, "{label:<9} {text}");
        line("socket", &self.socket.display().to_string());
        line("workers", &workers.to_string());
        line("pool", &format!("{buffers} buffers of {buffer_bytes} bytes"));
        line("ports", &self.ports.join(", "));
        for service in &self.services {
            line("service", &self::service(service));
        }
        for chain in &self.chains {
            let services = chain::services(chain);
            line("chain", &format!("{}: {services}; end {}", chain.name, chain.end));
        }
        line("rules", &rules.to_string());
        for note in &self.notes {
            let _ = writeln!(out, "note: {note}");
        }
        out
    }
}

/// `fw: 2 instances of /usr/bin/millrace-nf firewall`.
fn service(service: &ServiceSpec) -> String {
    let name = &service.name;
    match &service.command {
        None => format!("{name}: started by hand"),
        Some(command) => {
            let plural = if service.instances == 1 { "" } else { "s" };
            format!("{name}: {} instance{plural} of {}", service.instances, command.join(" "))
        }
    }
}

pub fn check(globals: &Globals, options: &CheckOptions) -> anyhow::Result<()> {
    // The error is one whole line: its source is in it.
    let config = Config::load(&options.file).map_err(|error| anyhow::anyhow!(error.to_string()))?;
    let summary = Summary::of(&config, &options.file);
    print::either(globals.json, &summary, || summary.show())
}

pub fn diff(globals: &Globals, options: &DiffOptions) -> anyhow::Result<()> {
    send(globals, &options.file, Mood::Would)
}

pub fn apply(globals: &Globals, options: &ApplyOptions) -> anyhow::Result<()> {
    send(globals, &options.file, if options.dry_run { Mood::Would } else { Mood::Done })
}

/// The manager reads the text, not the file: it may not be allowed to, and must not be led to.
fn send(globals: &Globals, file: &Path, mood: Mood) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let path = file.display().to_string();
    let request = Request::Apply { path, text, dry_run: mood == Mood::Would };
    let applied = globals.connect()?.change(&request)?;
    print::either(globals.json, &applied, || applied::show(&applied, mood))
}
