//! `millrace top`: a live view of ports, NFs, chains, rates, drops and cores.
#![forbid(unsafe_code)]

mod body;
mod cores;
mod keys;
mod reading;
mod screen;
mod view;

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use nix::sys::signal::{self, SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::{Globals, print, words};
use keys::Key;
use reading::{Reading, Watch};
use screen::{Event, Screen};
use view::View;

#[derive(Args)]
pub struct Options {
    /// Look at the manager every so many seconds
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = words::interval)]
    interval: f64,
    /// Print one view, measured over one interval, without escape codes, and end
    #[arg(long)]
    once: bool,
    /// Begin with this view: 1 all, 2 NFs, 3 chains and rules, 4 drops and cores
    #[arg(long, value_name = "1-4", default_value = "1", value_parser = clap::value_parser!(u8).range(1..=4))]
    view: u8,
}

pub fn run(globals: &Globals, options: &Options) -> anyhow::Result<ExitCode> {
    let interval = Duration::from_secs_f64(options.interval);
    let watch = Watch::new(&globals.socket);
    let view = View::new(options.view);
    match (options.once, globals.json) {
        (true, as_json) => once(watch, interval, view, as_json),
        (false, true) => json_lines(watch, interval),
        (false, false) => {
            if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
                let message = "top needs a terminal: use --once for one view, or --json for lines";
                return Err(print::usage(message));
            }
            live(watch, interval, view)
        }
    }
}

fn once(
    mut watch: Watch,
    interval: Duration,
    mut view: View,
    as_json: bool,
) -> anyhow::Result<ExitCode> {
    if let Reading::Up(_) = watch.read() {
        std::thread::sleep(interval);
    }
    let reading = watch.read();
    if let Reading::Away { away } = &reading {
        bail!("{away}");
    }
    if as_json {
        print::json(&reading)?;
    } else {
        view.reading = reading;
        let lines = view.whole();
        print::text(&lines.into_iter().map(|line| line.text + "\n").collect::<String>())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// One line per interval for ever: what was measured, or why nothing was.
fn json_lines(mut watch: Watch, interval: Duration) -> anyhow::Result<ExitCode> {
    watch.read();
    loop {
        std::thread::sleep(interval);
        print::json(&watch.read())?;
    }
}

fn live(mut watch: Watch, interval: Duration, mut view: View) -> anyhow::Result<ExitCode> {
    let signals = block_signals()?;
    let screen = Screen::enter(std::io::stdin(), std::io::stdout())?;
    let mut next = Instant::now();
    let ended_by = loop {
        let now = Instant::now();
        if now >= next {
            if !view.paused {
                view.reading = watch.read();
            }
            next = now + interval;
        }
        screen.draw(&view.frame(screen.size(), interval))?;
        match screen.wait(&signals, next.saturating_duration_since(Instant::now()))? {
            Event::Nothing | Event::Signal(Signal::SIGWINCH) => {}
            Event::Signal(signal) => break Some(signal),
            Event::Hangup => break None,
            Event::Keys(keys) => {
                if keys.contains(&Key::Quit) {
                    break None;
                }
                if keys.contains(&Key::Suspend) {
                    screen.suspend()?;
                }
                keys.into_iter().for_each(|key| view.press(key));
            }
        }
    };
    drop(screen);
    if let Some(signal) = ended_by {
        // The terminal is as it was; now end as the sender of the signal expects.
        SigSet::from(signal).thread_unblock()?;
        signal::raise(signal)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Signals arrive between two frames, so that the terminal is always restored.
fn block_signals() -> nix::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGWINCH] {
        set.add(signal);
    }
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}
