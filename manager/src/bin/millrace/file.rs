//! `millrace check`, `diff` and `apply`: a configuration file against itself, and against what runs.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use millrace::config::Config;
use millrace::model::Chain;
use nflib::control::Request;
use serde::Serialize;

use crate::applied::{self, Mood};
use crate::{Globals, print};

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
    services: Vec<String>,
    chains: Vec<String>,
    rules: usize,
    notes: Vec<String>,
}

impl Summary {
    fn of(config: &Config, file: &Path) -> Self {
        let model = &config.model;
        let name = |id| model.service(id).map_or_else(String::new, |s| s.name().to_owned());
        let chain = |chain: &Chain| {
            let services: Vec<_> = chain.services.iter().copied().map(name).collect();
            let way = if services.is_empty() { "(empty)".into() } else { services.join(" → ") };
            format!("{}: {way}, then {}", chain.name(), chain.spec.end)
        };
        Self {
            file: file.to_owned(),
            socket: config.manager.socket.clone(),
            workers: config.manager.workers,
            buffers: config.pool.buffers,
            buffer_bytes: config.pool.buffer_bytes,
            ports: config.ports.iter().map(|port| port.name.clone()).collect(),
            services: model.services().map(|service| service.name().to_owned()).collect(),
            chains: model.chains().map(|c| chain(c)).collect(),
            rules: model.rule_count(),
            notes: config.notes.clone(),
        }
    }

    fn show(&self) -> String {
        let Self { workers, buffers, buffer_bytes, .. } = self;
        let mut out = format!("{}: good\n", self.file.display());
        out += &format!("socket    {}\n", self.socket.display());
        out += &format!("workers   {workers}\n");
        out += &format!("pool      {buffers} buffers of {buffer_bytes} bytes\n");
        out += &format!("ports     {}\n", self.ports.join(", "));
        out += &format!("services  {}\n", self.services.join(", "));
        for chain in &self.chains {
            out += &format!("chain     {chain}\n");
        }
        out += &format!("rules     {}\n", self.rules);
        for note in &self.notes {
            out += &format!("note: {note}\n");
        }
        out
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
