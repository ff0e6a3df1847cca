//! Text for people: tables, numbers with prefixes, and the texts of others made harmless.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

/// Rows under a header, each column as wide as its widest cell; numbers to the right.
pub struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns and no row.
    pub fn new(header: &[&'static str]) -> Self {
        Self { header: header.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; it has a cell for each column.
    pub fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.header.len());
        self.rows.push(cells.into_iter().map(|cell| clean(&cell)).collect());
    }

    /// Lines without ends, the header first.
    pub fn lines(&self) -> Vec<String> {
        let columns: Vec<_> = (0..self.header.len())
            .map(|column| (self.width(column), self.is_number(column)))
            .collect();
        let header: Vec<String> = self.header.iter().map(|&title| title.to_owned()).collect();
        let all = std::iter::once(&header).chain(&self.rows);
        all.map(|row| {
            let mut line = String::new();
            for (cell, &(width, is_number)) in row.iter().zip(&columns) {
                let _ = if is_number {
                    write!(line, "{cell:>width$}  ")
                } else {
                    write!(line, "{cell:<width$}  ")
                };
            }
            line.truncate(line.trim_end().len());
            line
        })
        .collect()
    }

    /// The lines as one text.
    pub fn text(&self) -> String {
        self.lines().into_iter().map(|line| line + "\n").collect()
    }

    fn width(&self, column: usize) -> usize {
        let cells = self.rows.iter().map(|row| row[column].chars().count());
        cells.chain([self.header[column].chars().count()]).max().unwrap_or(0)
    }

    /// Whether every cell is a number or `-`, and one is a number.
    fn is_number(&self, column: usize) -> bool {
        // `3,5` is a list, `1 → 2` a chain, `0000:03:00.0` a device.
        let number = |cell: &str| {
            let first = cell.split(' ').next().unwrap_or_default();
            first.starts_with(|c: char| c.is_ascii_digit())
                && !first.contains([',', ':', '/'])
                && !cell.contains('→')
        };
        let cells = || self.rows.iter().map(|row| row[column].as_str());
        cells().any(number) && cells().all(|cell| cell == "-" || number(cell))
    }
}

/// A text that somebody else wrote (an NF's name, an answer) without what would command a terminal
/// or break a line.
pub fn clean(text: &str) -> String {
    let harmless = |c: char| if c.is_control() || is_direction(c) { '\u{fffd}' } else { c };
    text.chars().map(harmless).collect()
}

/// Marks that change the direction or the order of what is shown (Unicode UAX #9), and line ends of
/// Unicode.
fn is_direction(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A value, or `-`.
pub fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// A list, or `-`.
pub fn list(items: &[impl ToString]) -> String {
    if items.is_empty() {
        return "-".to_owned();
    }
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// A rate with a decimal prefix: `1.23 Mpps`.
pub fn si(value: f64, unit: &str) -> String {
    let (scaled, prefix) = match value {
        v if v >= 999.995e6 => (v / 1e9, "G"),
        v if v >= 999.995e3 => (v / 1e6, "M"),
        v if v >= 999.5 => (v / 1e3, "k"),
        v => (v, ""),
    };
    let digits = if prefix.is_empty() { 0 } else { 2 };
    format!("{scaled:.digits$} {prefix}{unit}")
}

/// A share of 1 in percent: `12.5 %`.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// A short time with three digits that count: `812 ns`, `3.21 µs`, `45.6 ms`, `1.20 s`.
pub fn time_ns(ns: u64) -> String {
    let (scaled, unit) = match ns {
        ns if ns < 1000 => return format!("{ns} ns"),
        ns if ns < 999_500 => (ns as f64 / 1e3, "µs"),
        ns if ns < 999_500_000 => (ns as f64 / 1e6, "ms"),
        ns => (ns as f64 / 1e9, "s"),
    };
    let digits = match scaled {
        scaled if scaled < 9.995 => 2,
        scaled if scaled < 99.95 => 1,
        _ => 0,
    };
    format!("{scaled:.digits$} {unit}")
}

/// A time that has passed, in the unit a person would use: `0.25 s`, `12 s`, `3 min`, `5 h`.
pub fn ago(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => format!("{s:.2} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} d", s / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(header: &[&'static str], rows: &[&[&str]]) -> String {
        let mut table = Table::new(header);
        for row in rows {
            table.row(row.iter().map(|&cell| cell.to_owned()).collect());
        }
        table.text()
    }

    #[test]
    fn columns_line_up_and_numbers_stand_to_the_right() {
        assert_eq!(
            table(&["A", "N"], &[&["x", "5"], &["long", "10"]]),
            "A      N\nx      5\nlong  10\n"
        );
        assert_eq!(table(&["N"], &[&["-"], &["10"]]), " N\n -\n10\n");
        assert_eq!(table(&["LIST"], &[&["3,5"], &["4"]]), "LIST\n3,5\n4\n");
        assert_eq!(table(&["PLACE", "T"], &[&["-", "a"]]), "PLACE  T\n-      a\n");
    }

    #[test]
    fn a_name_of_somebody_else_cannot_command_the_terminal() {
        assert_eq!(table(&["A"], &[&["\x1b[2J\nx\u{202e}"]]), "A\n\u{fffd}[2J\u{fffd}x\u{fffd}\n");
    }

    #[test]
    fn rates_have_a_prefix_a_person_can_read() {
        for (value, text) in [
            (0.0, "0 pps"),
            (999.0, "999 pps"),
            (999.9, "1.00 kpps"),
            (999_999.0, "1.00 Mpps"),
            (1_234_567.0, "1.23 Mpps"),
            (40e9, "40.00 Gpps"),
        ] {
            assert_eq!(si(value, "pps"), text);
        }
    }

    #[test]
    fn short_times_have_three_digits_that_count() {
        for (ns, text) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1000, "1.00 µs"),
            (12_345, "12.3 µs"),
            (99_960, "100 µs"),
            (999_499, "999 µs"),
            (999_500, "1.00 ms"),
            (1_204_000_000, "1.20 s"),
            (123_000_000_000, "123 s"),
        ] {
            assert_eq!(time_ns(ns), text);
        }
    }

    #[test]
    fn times_have_the_unit_a_person_would_use() {
        let shown: Vec<_> = [0.25, 12.4, 180.0, 18_000.0, 864_000.0].map(ago).into();
        assert_eq!(shown, ["0.25 s", "12 s", "3 min", "5 h", "10 d"]);
    }
}
