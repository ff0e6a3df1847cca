//! `millrace-web`: the manager's state in a browser.
#![forbid(unsafe_code)]

use std::io::Write as _;
use std::process::ExitCode;

use millrace_web::options::{Options, parse};
use millrace_web::server::Server;

fn main() -> ExitCode {
    let options = match parse(std::env::args_os()) {
        Ok(options) => options,
        Err(stop) => return stop.tell(),
    };
    if let Err(error) = nflib::log::init(&options.log) {
        eprintln!("millrace-web: {error}");
        return ExitCode::from(2);
    }
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("millrace-web: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    let server = Server::bind(options.listen)?;
    if nix::unistd::geteuid().is_root() {
        tracing::warn!(
            "running as root, which the console does not need: run it as a user of the group that \
             may use the manager's socket (manager.socket_group)"
        );
    }
    let address = server.address();
    server.run(options, || {
        say(&format!("ready: http://{address}/, manager at {}", options.socket.display()));
    })?;
    say("stopped");
    Ok(())
}

/// Prints a line; whether anyone still reads it is no matter (`millrace-web | head -1`).
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
