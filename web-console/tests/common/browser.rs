//! Chromium without a window, driven over WebDriver (W3C, 2018) by Debian's chromedriver.

// Each suite uses a part of this.
#![allow(dead_code)]

use std::cell::Cell;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::{LIMIT, is_installed, long_is_wanted, skip};

/// How a page is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    pub name: &'static str,
    pub width_px: u32,
    pub is_dark: bool,
}

/// Wide and narrow, light and dark.
pub const LOOKS: [Look; 4] = [
    Look { name: "light", width_px: 1280, is_dark: false },
    Look { name: "dark", width_px: 1280, is_dark: true },
    Look { name: "phone", width_px: 390, is_dark: false },
    Look { name: "dark-phone", width_px: 390, is_dark: true },
];

/// A browser with one page.
pub struct Browser {
    driver: Child,
    address: String,
    session: String,
    artefacts: PathBuf,
    told_axe: Cell<bool>,
}

impl Browser {
    /// Starts one; `None`, and why, where it is not asked for, or Chromium or its driver is not
    /// installed.
    pub fn start() -> Option<Self> {
        let programs = ["chromium", "chromedriver"];
        if !long_is_wanted() || !programs.iter().all(|program| is_installed(program)) {
            return None;
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let driver = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (address, session) = (format!("127.0.0.1:{port}"), String::new());
        let mut browser =
            Self { driver, address, session, artefacts: artefacts(), told_axe: Cell::new(false) };
        let started = Instant::now();
        while browser.try_call("GET", "/status", &Value::Null).is_none() {
            assert!(started.elapsed() < LIMIT, "chromedriver does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        let options = json!({ "args": ["--headless=new", "--no-sandbox", "--disable-gpu",
            "--disable-dev-shm-usage", "--window-size=1280,1000"] });
        let always = json!({ "goog:chromeOptions": options,
            "goog:loggingPrefs": { "browser": "ALL" } });
        let made =
            browser.call("POST", "/session", &json!({ "capabilities": { "alwaysMatch": always } }));
        browser.session = format!("/session/{}", made["sessionId"].as_str().unwrap());
        Some(browser)
    }

    fn try_call(&self, method: &str, path: &str, body: &Value) -> Option<Value> {
        let mut stream = TcpStream::connect(&self.address).ok()?;
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).ok()?;
        // The driver leaves the connection open, so the length counts.
        let (mut answer, mut len_bytes) = (BufReader::new(stream), 0);
        loop {
            let mut line = String::new();
            answer.read_line(&mut line).ok()?;
            match line.trim_end().split_once(':') {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    len_bytes = value.trim().parse().ok()?;
                }
                None if line.trim_end().is_empty() => break,
                _ => {}
            }
        }
        let mut body = vec![0; len_bytes];
        answer.read_exact(&mut body).ok()?;
        serde_json::from_slice(&body).ok()
    }

    #[track_caller]
    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let mut answer =
            self.try_call(method, &format!("{}{path}", self.session), body).expect("WebDriver");
        let value = answer["value"].take();
        assert!(value.get("error").is_none(), "{path}: {value}");
        value
    }

    /// Opens an address.
    pub fn open(&self, url: &str) {
        self.call("POST", "/url", &json!({ "url": url }));
    }

    /// What a function's body returns in the page.
    #[track_caller]
    pub fn run(&self, script: &str) -> Value {
        self.call("POST", "/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// The text of what a selector finds first, empty if there is none.
    #[track_caller]
    pub fn text(&self, selector: &str) -> String {
        let script = format!("return document.querySelector({selector:?})?.innerText ?? ''");
        self.run(&script).as_str().unwrap_or_default().to_owned()
    }

    /// Waits until an expression of the page's is true.
    #[track_caller]
    pub fn until(&self, what: &str, expression: &str) {
        let end = Instant::now() + LIMIT;
        while self.run(&format!("return Boolean({expression})")) != json!(true) {
            if Instant::now() >= end {
                self.picture("failed");
                panic!("not in time: {what}; see {}", self.artefacts.display());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn element(&self, selector: &str) -> String {
        let found =
            self.call("POST", "/element", &json!({ "using": "css selector", "value": selector }));
        let id = found.as_object().and_then(|element| element.values().next());
        id.and_then(Value::as_str).unwrap().to_owned()
    }

    /// Clicks as a person does: fails when something else lies above.
    #[track_caller]
    pub fn click(&self, selector: &str) {
        let element = self.element(selector);
        self.call("POST", &format!("/element/{element}/click"), &json!({}));
    }

    /// Types into a field, after what is in it.
    #[track_caller]
    pub fn write(&self, selector: &str, text: &str) {
        let element = self.element(selector);
        self.call("POST", &format!("/element/{element}/value"), &json!({ "text": text }));
    }

    /// Presses keys, whoever has the focus.
    pub fn press(&self, keys: &str) {
        let actions: Vec<_> = keys
            .chars()
            .flat_map(|key| {
                let key = key.to_string();
                [
                    json!({ "type": "keyDown", "value": key }),
                    json!({ "type": "keyUp", "value": key }),
                ]
            })
            .collect();
        self.call(
            "POST",
            "/actions",
            &json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": actions }] }),
        );
    }

    fn devtools(&self, command: &str, parameters: &Value) {
        self.call("POST", "/goog/cdp/execute", &json!({ "cmd": command, "params": parameters }));
    }

    /// Looks at the page in another way from now on.
    pub fn look(&self, look: Look) {
        let scheme = if look.is_dark { "dark" } else { "light" };
        self.devtools(
            "Emulation.setEmulatedMedia",
            &json!({ "features":
            [{ "name": "prefers-color-scheme", "value": scheme }] }),
        );
        self.size(look.width_px, 900);
    }

    fn size(&self, width_px: u32, height_px: u32) {
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            &json!({ "width": width_px,
            "height": height_px, "deviceScaleFactor": 1, "mobile": width_px < 600 }),
        );
    }

    /// Keeps a picture of the whole page.
    pub fn picture(&self, name: &str) {
        let shot = self.call("GET", "/screenshot", &Value::Null);
        std::fs::create_dir_all(&self.artefacts).unwrap();
        let bytes = base64(shot.as_str().unwrap());
        std::fs::write(self.artefacts.join(format!("{name}.png")), bytes).unwrap();
    }

    /// Keeps a picture of the page in its full height, at most 3,000 px.
    pub fn whole_picture(&self, look: Look, name: &str) {
        let height = self.run("return document.documentElement.scrollHeight").as_u64().unwrap();
        self.size(look.width_px, u32::try_from(height.min(3000)).unwrap());
        // The page draws anew once its size has changed.
        std::thread::sleep(Duration::from_millis(300));
        self.picture(name);
        self.size(look.width_px, 900);
    }

    /// Shows a view of the console's page.
    #[track_caller]
    pub fn view(&self, name: &str) {
        self.run(&format!("location.hash = '#{name}'"));
        self.until(name, &format!("!document.getElementById('view-{name}').hidden"));
    }

    /// The view that is shown is kept as a picture, fits, says what its charts show, and has no serious
    /// fault of accessibility.
    #[track_caller]
    pub fn looks_well(&self, look: Look, name: &str) {
        std::thread::sleep(Duration::from_millis(300));
        self.run("document.getElementById('toast').hidden = true; scrollTo(0, 0)");
        self.whole_picture(look, &format!("{}-{name}", look.name));
        let wide = self.run("return document.documentElement.scrollWidth - innerWidth");
        assert!(wide.as_i64() <= Some(0), "{} {name} is {wide} px too wide", look.name);
        let drawn = self.run(
            "return [...document.querySelectorAll('.view:not([hidden]) svg.chart')] \
             .every((chart) => chart.querySelectorAll('path.line').length > 0 \
             && chart.getAttribute('aria-label'))",
        );
        assert_eq!(drawn, true, "{} {name}: charts have lines and say what they show", look.name);
        self.is_accessible(&format!("{} {name}", look.name));
    }

    /// By axe-core, where `$MILLRACE_AXE` names its `axe.min.js`.
    #[track_caller]
    fn is_accessible(&self, what: &str) {
        let Some(path) = std::env::var_os("MILLRACE_AXE") else {
            if !self.told_axe.replace(true) {
                skip("axe-core is not here: MILLRACE_AXE does not name its axe.min.js");
            }
            return;
        };
        let axe = std::fs::read_to_string(path).unwrap();
        self.run(&format!("if (!window.axe) {{ {axe} }}"));
        self.run("window.axeDone = null; axe.run().then((found) => { window.axeDone = found; })");
        self.until("axe is done", "window.axeDone !== null");
        let faults = self.run(
            "return axeDone.violations.filter((fault) => ['serious', 'critical'].includes(fault.impact)) \
             .map((fault) => `${fault.id}: ${fault.nodes[0].html} ${fault.nodes[0].failureSummary}`)",
        );
        assert_eq!(faults, json!([]), "{what}");
    }

    /// Lets the page keep files in this directory.
    pub fn keep_files(&self, directory: &Path) {
        self.devtools(
            "Browser.setDownloadBehavior",
            &json!({ "behavior": "allow", "downloadPath": directory }),
        );
    }

    /// What the browser complained of so far.
    pub fn complaints(&self) -> Vec<String> {
        let log = self.call("POST", "/se/log", &json!({ "type": "browser" }));
        let entries = log.as_array().cloned().unwrap_or_default();
        entries.iter().map(ToString::to_string).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            let _ = self.try_call("DELETE", &self.session, &Value::Null);
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// Where pictures are kept: `$MILLRACE_ARTEFACTS`, or beside the programs.
fn artefacts() -> PathBuf {
    std::env::var_os("MILLRACE_ARTEFACTS").map_or_else(
        || Path::new(env!("CARGO_BIN_EXE_millrace-web")).with_file_name("web-artefacts"),
        PathBuf::from,
    )
}

/// RFC 4648, section 4.
fn base64(text: &str) -> Vec<u8> {
    let value = |letter: u8| match letter {
        b'A'..=b'Z' => letter - b'A',
        b'a'..=b'z' => letter - b'a' + 26,
        b'0'..=b'9' => letter - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let letters: Vec<u8> = text.bytes().filter(|&letter| letter != b'=').collect();
    letters
        .chunks(4)
        .flat_map(|four| {
            let bits =
                four.iter().fold(0_u32, |bits, &letter| bits << 6 | u32::from(value(letter)));
            let bits = bits << (6 * (4 - four.len()));
            bits.to_be_bytes()[1..four.len()].to_vec()
        })
        .collect()
}
