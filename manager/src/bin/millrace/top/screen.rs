//! A terminal that shows whole frames, and is given back as it was.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use rustix::termios::{self, OptionalActions, Termios};

use super::keys::{self, Key};
use super::view::{Line, Style};

/// The other screen, no cursor, no wrapping: xterm's control sequences, ECMA-48.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[H\x1b[2J";
const LEAVE: &str = "\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l";
/// What is assumed of a terminal that does not know its size.
const USUAL_SIZE: Size = Size { columns: 80, rows: 24 };

/// How large a terminal is, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Of a line.
    pub columns: usize,
    /// Of the terminal.
    pub rows: usize,
}

/// Why [`Screen::wait`] came back.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// The time is over.
    Nothing,
    /// Some keys.
    Keys(Vec<Key>),
    /// A signal.
    Signal(Signal),
    /// The terminal is gone.
    Hangup,
}

/// A terminal and how it was.
struct Terminal {
    input: OwnedFd,
    output: File,
    before: Termios,
}

impl Terminal {
    fn engage(&self) -> io::Result<()> {
        let mut raw = self.before.clone();
        raw.make_raw();
        termios::tcsetattr(&self.input, OptionalActions::Flush, &raw)?;
        (&self.output).write_all(ENTER.as_bytes())
    }

    /// Gives the terminal back. Does no harm when done twice, or to a terminal that is gone.
    fn restore(&self) {
        let _ = (&self.output).write_all(LEAVE.as_bytes());
        let _ = termios::tcsetattr(&self.input, OptionalActions::Flush, &self.before);
    }
}

/// A terminal in use. Dropping it gives it back; a panic does too, before its message is written.
pub struct Screen {
    terminal: Arc<Terminal>,
}

impl Screen {
    /// Takes the terminal: no echo, no lines, no signals by keys, the other screen.
    ///
    /// # Errors
    /// When one of the two is no terminal.
    pub fn enter(input: impl AsFd, output: impl AsFd) -> io::Result<Self> {
        let input = input.as_fd().try_clone_to_owned()?;
        let output = File::from(output.as_fd().try_clone_to_owned()?);
        let before = termios::tcgetattr(&input)?;
        let terminal = Arc::new(Terminal { input, output, before });
        let screen = Self { terminal: Arc::clone(&terminal) };
        let owner = std::thread::current().id();
        let terminal = Arc::downgrade(&terminal);
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            // Another thread's panic ends that thread and not the screen.
            if std::thread::current().id() == owner
                && let Some(terminal) = terminal.upgrade()
            {
                terminal.restore();
            }
            hook(info);
        }));
        screen.terminal.engage()?;
        Ok(screen)
    }

    /// How large it is now.
    pub fn size(&self) -> Size {
        match termios::tcgetwinsize(&self.terminal.output) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
                Size { columns: size.ws_col.into(), rows: size.ws_row.into() }
            }
            _ => USUAL_SIZE,
        }
    }

    /// Shows a frame, in one write, so that none is seen half.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn draw(&self, lines: &[Line]) -> io::Result<()> {
        let mut out = String::from("\x1b[H");
        for (at, line) in lines.iter().enumerate() {
            if at > 0 {
                out += "\r\n";
            }
            out += match line.style {
                Style::Plain => "",
                Style::Title => "\x1b[7m",
                Style::Header => "\x1b[1m",
                Style::Bad => "\x1b[31m",
                Style::Quiet => "\x1b[2m",
            };
            out += &line.text;
            out += "\x1b[0m\x1b[K";
        }
        out += "\x1b[J";
        (&self.terminal.output).write_all(out.as_bytes())
    }

    /// Waits for keys or a signal, at most so long.
    ///
    /// # Errors
    /// As poll(2) and read(2) do.
    pub fn wait(&self, signals: &SignalFd, limit: Duration) -> io::Result<Event> {
        let mut fds = [
            PollFd::new(self.terminal.input.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        // Rounded up: waking a little early would only mean to wait again.
        let ms = limit.as_micros().div_ceil(1000).min(60_000) as u16;
        match poll(&mut fds, PollTimeout::from(ms)) {
            Err(Errno::EINTR) | Ok(0) => return Ok(Event::Nothing),
            Err(errno) => return Err(errno.into()),
            Ok(_) => {}
        }
        if let Some(info) = signals.read_signal()? {
            let signal = Signal::try_from(info.ssi_signo as i32)?;
            return Ok(Event::Signal(signal));
        }
        if fds[0].revents().is_none_or(|events| events.is_empty()) {
            return Ok(Event::Nothing);
        }
        let mut bytes = [0; 256];
        match nix::unistd::read(&self.terminal.input, &mut bytes) {
            Ok(0) | Err(Errno::EIO) => Ok(Event::Hangup),
            Ok(len) => Ok(Event::Keys(keys::parse(&bytes[..len]))),
            Err(Errno::EINTR | Errno::EAGAIN) => Ok(Event::Nothing),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Gives the terminal back, stops the process as Ctrl-Z would, and takes it again when it goes
    /// on.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn suspend(&self) -> io::Result<()> {
        self.terminal.restore();
        nix::sys::signal::raise(Signal::SIGTSTP)?;
        self.terminal.engage()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.terminal.restore();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::LocalModes;

    /// The two ends of a pseudo-terminal: the person's, the program's.
    fn pty() -> (OwnedFd, File) {
        let person = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&person).unwrap();
        unlockpt(&person).unwrap();
        let name = ptsname(&person, Vec::new()).unwrap().into_string().unwrap();
        (person, File::options().read(true).write(true).open(name).unwrap())
    }

    fn cooked(terminal: &File) -> bool {
        let modes = termios::tcgetattr(terminal).unwrap().local_modes;
        modes.contains(LocalModes::ICANON) && modes.contains(LocalModes::ECHO)
    }

    #[test]
    fn the_terminal_is_given_back_as_it_was_and_also_by_a_panic() {
        let (_person, terminal) = pty();
        assert!(cooked(&terminal));
        let screen = Screen::enter(&terminal, &terminal).unwrap();
        assert!(!cooked(&terminal));
        drop(screen);
        assert!(cooked(&terminal));

        let seen = terminal.try_clone().unwrap();
        let panicking = std::thread::spawn(move || {
            let _screen = Screen::enter(&seen, &seen).unwrap();
            assert!(!cooked(&seen), "taken");
            panic!("on purpose");
        });
        assert!(panicking.join().is_err());
        assert!(cooked(&terminal));
    }

    #[test]
    fn a_frame_clears_what_was_longer_and_the_size_is_the_terminals() {
        let (person, terminal) = pty();
        let size = termios::Winsize { ws_row: 30, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
        termios::tcsetwinsize(&person, size).unwrap();
        let screen = Screen::enter(&terminal, &terminal).unwrap();
        assert_eq!(screen.size(), Size { columns: 100, rows: 30 });
        let line = |style, text: &str| Line { style, text: text.into() };
        screen.draw(&[line(Style::Title, "a"), line(Style::Plain, "b")]).unwrap();
        // A terminal hands over what was written in pieces as it likes.
        let mut text = String::new();
        while !text.ends_with("\x1b[J") {
            let mut bytes = [0; 500];
            let len = nix::unistd::read(&person, &mut bytes).unwrap();
            text += std::str::from_utf8(&bytes[..len]).unwrap();
        }
        assert_eq!(
            text.strip_prefix(ENTER).unwrap(),
            "\x1b[H\x1b[7ma\x1b[0m\x1b[K\r\nb\x1b[0m\x1b[K\x1b[J"
        );
    }

    #[test]
    fn no_size_is_the_usual_size() {
        let (_person, terminal) = pty();
        let screen = Screen::enter(&terminal, &terminal).unwrap();
        assert_eq!(screen.size(), USUAL_SIZE);
    }
}
