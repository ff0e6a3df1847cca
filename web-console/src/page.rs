//! The page: its files, inside the program.
//!
//! Everything the browser loads comes from here, so that the content security policy can forbid
//! the rest, and the program runs from any directory.
#![forbid(unsafe_code)]

/// One file.
#[derive(Clone, Copy, Debug)]
pub struct File {
    /// Where it is served.
    pub path: &'static str,
    /// Its media type.
    pub content_type: &'static str,
    /// What is in it.
    pub text: &'static str,
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

macro_rules! files {
    ($($path:literal $content_type:ident $file:literal;)+) => {
        /// Every file.
        pub const FILES: &[File] = &[$(File {
            path: $path,
            content_type: $content_type,
            text: include_str!(concat!("../page/", $file)),
        }),+];
    };
}

/// Whether a path is answered without a token: what shows the form that asks for it.
#[must_use]
pub fn is_open(path: &str) -> bool {
    matches!(path, "/login" | "/login.js" | "/style.css" | "/views.css" | "/icon.svg")
}

files! {
    "/" HTML "index.html";
    "/login" HTML "login.html";
    "/login.js" JAVASCRIPT "login.js";
    "/style.css" CSS "style.css";
    "/views.css" CSS "views.css";
    "/packets.css" CSS "packets.css";
    "/icon.svg" SVG "icon.svg";
    "/main.js" JAVASCRIPT "main.js";
    "/stream.js" JAVASCRIPT "stream.js";
    "/api.js" JAVASCRIPT "api.js";
    "/memory.js" JAVASCRIPT "memory.js";
    "/chart.js" JAVASCRIPT "chart.js";
    "/charts.js" JAVASCRIPT "charts.js";
    "/chain.js" JAVASCRIPT "chain.js";
    "/tables.js" JAVASCRIPT "tables.js";
    "/books.js" JAVASCRIPT "books.js";
    "/timeline.js" JAVASCRIPT "timeline.js";
    "/change.js" JAVASCRIPT "change.js";
    "/questions.js" JAVASCRIPT "questions.js";
    "/latency.js" JAVASCRIPT "latency.js";
    "/heat.js" JAVASCRIPT "heat.js";
    "/traces.js" JAVASCRIPT "traces.js";
    "/way.js" JAVASCRIPT "way.js";
    "/captures.js" JAVASCRIPT "captures.js";
    "/crashes.js" JAVASCRIPT "crashes.js";
    "/format.js" JAVASCRIPT "format.js";
    "/dom.js" JAVASCRIPT "dom.js";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_that_the_page_asks_for_is_served() {
        for file in FILES {
            for marker in ["src=\"", "href=\"", "from \"", "import(\""] {
                for rest in file.text.split(marker).skip(1) {
                    let target = rest.split('"').next().unwrap();
                    if target.starts_with('#')
                        || target.starts_with("/api/")
                        || target == "/metrics"
                    {
                        continue;
                    }
                    let path = target.trim_start_matches('.');
                    assert!(FILES.iter().any(|f| f.path == path), "{}: {target}", file.path);
                }
            }
        }
    }

    #[test]
    fn the_page_asks_for_nothing_from_elsewhere_and_has_nothing_inline() {
        for file in FILES {
            // The name of a namespace is no address that is asked.
            let text = file.text.replace("http://www.w3.org/2000/svg", "");
            for forbidden in ["http://", "https://", "//cdn", " style=\"", "<style", "onclick="] {
                assert!(!text.contains(forbidden), "{} contains {forbidden}", file.path);
            }
        }
    }

    #[test]
    fn nothing_that_others_wrote_can_become_markup() {
        for file in FILES.iter().filter(|file| file.content_type == JAVASCRIPT) {
            for forbidden in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write"] {
                assert!(!file.text.contains(forbidden), "{} uses {forbidden}", file.path);
            }
        }
    }
}
