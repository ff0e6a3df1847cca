//! `millrace completions` and `millrace man`: both from the definitions that parse the command line.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::print;

#[derive(Args)]
pub struct CompletionsOptions {
    /// For this shell
    #[arg(value_parser = shell, value_name = "bash|zsh|fish")]
    shell: Shell,
}

fn shell(name: &str) -> Result<Shell, String> {
    match name {
        "bash" => Ok(Shell::Bash),
        "zsh" => Ok(Shell::Zsh),
        "fish" => Ok(Shell::Fish),
        _ => Err("expected bash, zsh or fish".to_owned()),
    }
}

#[derive(Args)]
pub struct ManOptions {
    /// Write one page for each command into this directory, instead of the first to standard output
    #[arg(long)]
    dir: Option<PathBuf>,
}

pub fn completions(options: &CompletionsOptions) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut crate::Cli::command(), "millrace", &mut script);
    print::text(&String::from_utf8_lossy(&script))
}

pub fn man(options: &ManOptions) -> anyhow::Result<()> {
    let mut command = crate::Cli::command().disable_help_subcommand(true);
    command.build();
    match &options.dir {
        None => {
            let mut page = Vec::new();
            page_of(&command).render(&mut page)?;
            print::text(&String::from_utf8_lossy(&page))
        }
        Some(directory) => {
            let name = || directory.display().to_string();
            std::fs::create_dir_all(directory).with_context(name)?;
            write_pages(&command, directory).with_context(name)
        }
    }
}

/// `millrace.1`, `millrace-chain.1`, `millrace-chain-add.1`, …
fn write_pages(command: &Command, directory: &Path) -> std::io::Result<()> {
    page_of(command).generate_to(directory)?;
    command.get_subcommands().try_for_each(|sub| write_pages(sub, directory))
}

fn page_of(command: &Command) -> Man {
    Man::new(command.clone())
        .manual("Millrace")
        .source(format!("millrace {}", env!("CARGO_PKG_VERSION")))
}
