//! What an NF prints: a file it appends to, which is read from its end as it grows.
//!
//! A file and not a pipe, because an NF outlives its manager: writing to a pipe that nobody reads
//! would end it (SIGPIPE) or stop it (a full pipe) just when the manager has died. The file is
//! bounded: once it is longer than [`MAX_FILE_BYTES`] and read, it is cut to nothing; the NF's
//! descriptor appends, so it goes on at the start.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Length from which a file is cut, bytes.
pub const MAX_FILE_BYTES: u64 = 1 << 20;
/// Most that is read at once, bytes; with the time between two reads it bounds what an NF that
/// prints without end can cost.
const MAX_READ_BYTES: u64 = 64 << 10;
/// Longest line passed on, bytes; a longer one goes on as the next.
const MAX_LINE_BYTES: usize = 2048;
/// Lines remembered for messages about the end of an NF.
pub const LINES_KEPT: usize = 20;

/// The reader's side of one NF's output.
#[derive(Debug)]
pub struct Tail {
    path: PathBuf,
    offset: u64,
    partial: Vec<u8>,
    last: VecDeque<String>,
}

impl Tail {
    /// Opens the file for an NF to append to, and a reader that starts at its present end.
    ///
    /// # Errors
    /// As open(2).
    pub fn create(path: &Path) -> io::Result<(File, Self)> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o640)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(path)?;
        let offset = file.metadata()?.len();
        Ok((file, Self::at(path, offset)))
    }

    /// A reader for the file of an NF that runs already. What it printed so far is remembered and
    /// not passed on again.
    #[must_use]
    pub fn resume(path: &Path) -> Self {
        let len = std::fs::metadata(path).map_or(0, |meta| meta.len());
        let mut tail = Self::at(path, len.saturating_sub(MAX_READ_BYTES));
        let _ = tail.read();
        tail.partial.clear();
        tail
    }

    fn at(path: &Path, offset: u64) -> Self {
        let (partial, last) = (Vec::new(), VecDeque::new());
        Self { path: path.into(), offset, partial, last }
    }

    /// The last lines that were read, at most [`LINES_KEPT`].
    pub fn last_lines(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.last.iter().map(String::as_str)
    }

    /// Whole lines printed since the last call; control characters in them are shown as escapes, so
    /// that no NF writes to anybody's terminal but text. Of more than [`MAX_FILE_BYTES`] unread,
    /// only the end is read, and a line says what was left out.
    pub fn read(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        // A file that is gone or cannot be read has nothing to tell.
        let Ok(meta) = std::fs::metadata(&self.path) else { return lines };
        let len = meta.len();
        if len < self.offset {
            self.offset = 0; // somebody cut it
        }
        if len == self.offset {
            return lines;
        }
        if len - self.offset > MAX_FILE_BYTES {
            let skipped = len - MAX_READ_BYTES - self.offset;
            self.partial.clear();
            self.keep(format!("… {skipped} bytes of output are left out …"), &mut lines);
            self.offset = len - MAX_READ_BYTES;
        }
        self.read_some(len, &mut lines);
        if self.offset == len && len > MAX_FILE_BYTES {
            self.cut();
        }
        lines
    }

    /// All that is left when the NF has ended, also a last line without its end.
    pub fn finish(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        for _ in 0..=MAX_FILE_BYTES / MAX_READ_BYTES {
            let before = self.offset;
            lines.append(&mut self.read());
            if self.offset == before {
                break;
            }
        }
        if !self.partial.is_empty() {
            self.end_line(&mut lines);
        }
        lines
    }

    fn read_some(&mut self, len: u64, lines: &mut Vec<String>) {
        let mut bytes = vec![0; (len - self.offset).min(MAX_READ_BYTES) as usize];
        let Ok(count) = File::open(&self.path).and_then(|f| f.read_at(&mut bytes, self.offset))
        else {
            return;
        };
        self.offset += count as u64;
        for byte in &bytes[..count] {
            if *byte != b'\n' {
                self.partial.push(*byte);
            }
            if *byte == b'\n' || self.partial.len() >= MAX_LINE_BYTES {
                self.end_line(lines);
            }
        }
    }

    fn end_line(&mut self, lines: &mut Vec<String>) {
        let bytes = std::mem::take(&mut self.partial);
        self.keep(printable(&String::from_utf8_lossy(&bytes)), lines);
    }

    fn keep(&mut self, line: String, lines: &mut Vec<String>) {
        if self.last.len() == LINES_KEPT {
            self.last.pop_front();
        }
        self.last.push_back(line.clone());
        lines.push(line);
    }

    fn cut(&mut self) {
        let cut = OpenOptions::new().write(true).open(&self.path).and_then(|f| f.set_len(0));
        if cut.is_ok() {
            self.offset = 0;
        }
    }
}

fn printable(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    for c in line.trim_end().chars() {
        match c {
            '\t' => text.push(' '),
            c if c.is_control() => text.extend(c.escape_default()),
            c => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn bench() -> (tempfile::TempDir, File, Tail) {
        let directory = tempfile::tempdir().unwrap();
        let (file, tail) = Tail::create(&directory.path().join("nf.log")).unwrap();
        (directory, file, tail)
    }

    #[test]
    fn whole_lines_come_as_they_are_written_and_the_rest_at_the_end() {
        let (_directory, mut file, mut tail) = bench();
        assert!(tail.read().is_empty());
        file.write_all(b"one\ntw").unwrap();
        assert_eq!(tail.read(), ["one"]);
        file.write_all(b"o\nthree").unwrap();
        assert_eq!(tail.read(), ["two"]);
        assert_eq!(tail.finish(), ["three"]);
        assert_eq!(tail.last_lines().collect::<Vec<_>>(), ["one", "two", "three"]);
    }

    #[test]
    fn an_nf_cannot_write_to_a_terminal_but_text() {
        let (_directory, mut file, mut tail) = bench();
        file.write_all(b"\x1b[2J\x07good\xff\tend\r\n").unwrap();
        assert_eq!(tail.read(), ["\\u{1b}[2J\\u{7}good\u{fffd} end"]);
    }

    #[test]
    fn the_file_is_cut_when_it_is_long_and_nothing_that_was_read_comes_again() {
        let (_directory, mut file, mut tail) = bench();
        let line = "x".repeat(999);
        let mut read = 0;
        for _ in 0..3000 {
            writeln!(file, "{line}").unwrap();
            read += tail.read().len();
            assert!(file.metadata().unwrap().len() <= MAX_FILE_BYTES + 1000);
        }
        assert_eq!(read, 3000);
        assert_eq!(tail.last_lines().count(), LINES_KEPT);
    }

    #[test]
    fn a_flood_is_left_out_but_for_its_end() {
        let (_directory, mut file, mut tail) = bench();
        file.write_all(&b"0123456789\n".repeat(1 << 18)).unwrap();
        let lines = tail.read();
        assert!(lines[0].contains("bytes of output are left out"), "{}", lines[0]);
        assert!(lines.len() as u64 <= MAX_READ_BYTES / 11 + 2);
        assert_eq!(lines.last().unwrap(), "0123456789");
        assert_eq!(file.metadata().unwrap().len(), 0, "and it is cut");
    }

    #[test]
    fn a_line_without_end_is_passed_on_in_pieces() {
        let (_directory, mut file, mut tail) = bench();
        file.write_all(&[b'y'; 3 * MAX_LINE_BYTES + 5]).unwrap();
        assert_eq!(tail.read().len(), 3);
        assert_eq!(tail.finish(), ["yyyyy"]);
    }

    #[test]
    fn a_second_reader_remembers_and_does_not_repeat() {
        let (directory, mut file, _) = bench();
        file.write_all(b"before\n").unwrap();
        let mut tail = Tail::resume(&directory.path().join("nf.log"));
        assert!(tail.read().is_empty());
        assert_eq!(tail.last_lines().collect::<Vec<_>>(), ["before"]);
        file.write_all(b"after\n").unwrap();
        assert_eq!(tail.read(), ["after"]);
    }
}
