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
    if let Err(error) = nflib::log::init(&options.log, options.log_format) {
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
    if !address.ip().is_loopback() && options.tls_cert.is_none() {
        tracing::warn!(
            "the token and all figures cross the network in clear: add --tls-cert and --tls-key"
        );
    }
    server.run(options, || {
        let scheme = if options.tls_cert.is_some() { "https" } else { "http" };
        say(&format!("ready: {scheme}://{address}/, manager at {}", options.socket.display()));
    })?;
    say("stopped");
    Ok(())
}

/// Prints a line; whether anyone still reads it is no matter (`millrace-web | head -1`).
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
