//! How metrics are written: OpenMetrics 1.0 (RFC draft-richih-opsawg-openmetrics-00, section 4) and
//! the older text format, which differ in how counters are named, in units, and in the end.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use super::{Format, MAX_LINES};

/// What a family's values mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
    Info,
    Unknown,
}

/// Collects families.
#[derive(Debug)]
pub struct Writer {
    format: Format,
    out: String,
    left_out: usize,
}

/// One family, whose samples follow.
#[derive(Debug)]
pub struct Family<'a> {
    writer: &'a mut Writer,
    /// The name in front of a sample's labels.
    sample: String,
    lines: usize,
}

impl Writer {
    /// An empty one.
    pub fn new(format: Format) -> Self {
        Self { format, out: String::with_capacity(16 << 10), left_out: 0 }
    }

    /// A family that only grows; `name` is without `_total`.
    pub fn counter(&mut self, name: &str, help: &str) -> Family<'_> {
        self.family(name, Kind::Counter, help)
    }

    /// A family that goes up and down.
    pub fn gauge(&mut self, name: &str, help: &str) -> Family<'_> {
        self.family(name, Kind::Gauge, help)
    }

    /// A family of classic histograms, whose buckets are cumulative.
    pub fn histogram(&mut self, name: &str, help: &str) -> Family<'_> {
        self.family(name, Kind::Histogram, help)
    }

    /// A family whose labels say all; `name` is without `_info`.
    pub fn info(&mut self, name: &str, help: &str) -> Family<'_> {
        self.family(name, Kind::Info, help)
    }

    /// A family of which is not known how its values move.
    pub fn unknown(&mut self, name: &str, help: &str) -> Family<'_> {
        self.family(name, Kind::Unknown, help)
    }

    fn family(&mut self, name: &str, kind: Kind, help: &str) -> Family<'_> {
        let suffix = match kind {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            Kind::Gauge | Kind::Histogram | Kind::Unknown => "",
        };
        let sample = format!("{name}{suffix}");
        // OpenMetrics names the family, the older format the sample.
        let (named, kind) = match (self.format, kind) {
            (Format::OpenMetrics, Kind::Counter) => (name, "counter"),
            (Format::OpenMetrics, Kind::Info) => (name, "info"),
            (Format::OpenMetrics, Kind::Unknown) => (name, "unknown"),
            (Format::Text, Kind::Counter) => (&*sample, "counter"),
            (Format::Text, Kind::Info) => (&*sample, "gauge"),
            (Format::Text, Kind::Unknown) => (&*sample, "untyped"),
            (_, Kind::Gauge) => (name, "gauge"),
            (_, Kind::Histogram) => (name, "histogram"),
        };
        let _ = writeln!(self.out, "# HELP {named} {}", escaped(help, self.format));
        let _ = writeln!(self.out, "# TYPE {named} {kind}");
        if let (Format::OpenMetrics, Some(unit)) = (self.format, unit(name)) {
            let _ = writeln!(self.out, "# UNIT {named} {unit}");
        }
        Family { writer: self, sample, lines: 0 }
    }

    /// The whole text.
    pub fn end(mut self) -> String {
        let left_out = self.left_out as f64;
        self.gauge("millrace_web_left_out", "Lines that were left out because there are too many.")
            .value(&[], left_out);
        if self.format == Format::OpenMetrics {
            self.out.push_str("# EOF\n");
        }
        self.out
    }
}

impl Family<'_> {
    /// A sample. Labels are `(name, value)`; values may hold anything.
    pub fn value(&mut self, labels: &[(&str, &str)], value: f64) -> &mut Self {
        self.line(labels, format_args!("{value}"))
    }

    /// A sample that is a whole number, however large.
    pub fn count(&mut self, labels: &[(&str, &str)], value: u64) -> &mut Self {
        self.line(labels, format_args!("{value}"))
    }

    /// A whole histogram: `buckets` are upper ends, ascending, and how many values lie at or below; of
    /// `count` values with this `sum`. It is shown whole or not at all.
    pub fn buckets(
        &mut self,
        labels: &[(&str, &str)],
        buckets: &[(f64, u64)],
        count: u64,
        sum: f64,
    ) -> &mut Self {
        if self.lines + buckets.len() + 3 > MAX_LINES {
            self.writer.left_out += buckets.len() + 3;
            return self;
        }
        let ends = buckets.iter().map(|&(end, below)| (end.to_string(), below));
        for (end, below) in ends.chain([("+Inf".to_owned(), count)]) {
            let labels = [labels, &[("le", &*end)]].concat();
            self.named("_bucket", &labels, format_args!("{below}"));
        }
        self.named("_count", labels, format_args!("{count}"));
        self.named("_sum", labels, format_args!("{sum}"))
    }

    fn line(&mut self, labels: &[(&str, &str)], value: std::fmt::Arguments<'_>) -> &mut Self {
        self.named("", labels, value)
    }

    fn named(
        &mut self,
        suffix: &str,
        labels: &[(&str, &str)],
        value: std::fmt::Arguments<'_>,
    ) -> &mut Self {
        if self.lines == MAX_LINES {
            self.writer.left_out += 1;
            return self;
        }
        self.lines += 1;
        let out = &mut self.writer.out;
        out.push_str(&self.sample);
        out.push_str(suffix);
        for (at, (name, value)) in labels.iter().enumerate() {
            out.push(if at == 0 { '{' } else { ',' });
            out.push_str(name);
            out.push_str("=\"");
            escape(value, out);
            out.push('"');
        }
        if !labels.is_empty() {
            out.push('}');
        }
        let _ = writeln!(out, " {value}");
        self
    }
}

/// The unit that a name ends in (before `_total`), if it is a base unit that the format knows of.
fn unit(name: &str) -> Option<&'static str> {
    ["seconds", "bytes", "ratio", "packets", "buffers"]
        .into_iter()
        .find(|unit| name.strip_suffix(unit).is_some_and(|rest| rest.ends_with('_')))
}

/// A label's value: backslash, quote and line feed are escaped (both formats).
fn escape(value: &str, out: &mut String) {
    for letter in value.chars() {
        match letter {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            other => out.push(other),
        }
    }
}

/// A help text: OpenMetrics escapes quotes too.
fn escaped(help: &str, format: Format) -> String {
    let help = help.replace('\\', "\\\\").replace('\n', "\\n");
    if format == Format::OpenMetrics { help.replace('"', "\\\"") } else { help }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(format: Format) -> String {
        let mut writer = Writer::new(format);
        writer
            .counter("a_bytes", "What \"a\" has.")
            .count(&[("port", "x\"y\\z\nw"), ("q", "ü")], u64::MAX);
        writer.info("b", "What b is.").value(&[("v", "1")], 1.0);
        writer.unknown("c", "?").value(&[], 0.5);
        writer.end()
    }

    #[test]
    fn openmetrics_names_families_and_has_units_and_an_end() {
        assert_eq!(
            written(Format::OpenMetrics),
            "# HELP a_bytes What \\\"a\\\" has.\n# TYPE a_bytes counter\n# UNIT a_bytes bytes\n\
             a_bytes_total{port=\"x\\\"y\\\\z\\nw\",q=\"ü\"} 18446744073709551615\n\
             # HELP b What b is.\n# TYPE b info\nb_info{v=\"1\"} 1\n\
             # HELP c ?\n# TYPE c unknown\nc 0.5\n\
             # HELP millrace_web_left_out Lines that were left out because there are too many.\n\
             # TYPE millrace_web_left_out gauge\nmillrace_web_left_out 0\n# EOF\n"
        );
    }

    #[test]
    fn the_older_format_names_samples_and_just_ends() {
        let text = written(Format::Text);
        assert!(
            text.starts_with(
                "# HELP a_bytes_total What \"a\" has.\n# TYPE a_bytes_total counter\n"
            )
        );
        assert!(text.contains("# TYPE b_info gauge\n") && text.contains("# TYPE c untyped\n"));
        assert!(!text.contains("# UNIT") && !text.contains("# EOF"));
    }

    #[test]
    fn a_histogram_has_all_its_buckets_or_is_left_out() {
        let mut writer = Writer::new(Format::OpenMetrics);
        let mut family = writer.histogram("a_seconds", "a");
        family.buckets(&[("hop", "0")], &[(0.5, 1), (1.0, 3)], 4, 7.25);
        for n in 0..MAX_LINES {
            family.buckets(&[("hop", &n.to_string())], &[(1.0, 0)], 0, 0.0);
        }
        let text = writer.end();
        assert!(
            text.contains(
                "# TYPE a_seconds histogram\n# UNIT a_seconds seconds\n\
                 a_seconds_bucket{hop=\"0\",le=\"0.5\"} 1\na_seconds_bucket{hop=\"0\",le=\"1\"} 3\n\
                 a_seconds_bucket{hop=\"0\",le=\"+Inf\"} 4\na_seconds_count{hop=\"0\"} 4\n\
                 a_seconds_sum{hop=\"0\"} 7.25\n"
            ),
            "{text}"
        );
        assert_eq!(text.matches("_bucket{").count(), 3 + 2 * ((MAX_LINES - 5) / 4));
        assert!(!text.contains("left_out 0"));
    }

    #[test]
    fn too_many_lines_are_left_out_and_counted() {
        let mut writer = Writer::new(Format::Text);
        let mut family = writer.gauge("a", "a");
        for n in 0..MAX_LINES + 3 {
            family.count(&[("n", &n.to_string())], 1);
        }
        let text = writer.end();
        assert_eq!(text.matches("a{n=").count(), MAX_LINES);
        assert!(text.ends_with("millrace_web_left_out 3\n"));
    }
}
