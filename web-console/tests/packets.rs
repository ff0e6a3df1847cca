//! The page's views of packets in a real browser: latencies, traces, captures, crashes.

#[path = "common/browser.rs"]
mod browser;
mod common;

use browser::{Browser, LOOKS};
use common::{Answer, Console, FakeManager, LIMIT};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const VIEWS: [&str; 4] = ["latency", "traces", "captures", "crashes"];

/// A browser with the page of a console before a manager of the test's own.
fn stage(options: &[&str]) -> Option<(TempDir, FakeManager, Console, Browser)> {
    let browser = Browser::start()?;
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("manager.sock");
    let manager = FakeManager::start(&socket, Answer::Full);
    let console = Console::start_with(&socket, options);
    console.wait_for_code(200);
    browser.open(&format!("http://{}/", console.address));
    browser.until("the page is live", "document.body.dataset.state === 'live'");
    Some((dir, manager, console, browser))
}

/// The file that the page saves.
fn saved(directory: &Path) -> PathBuf {
    let started = Instant::now();
    loop {
        let files = std::fs::read_dir(directory).unwrap().filter_map(Result::ok);
        let mut files = files.map(|file| file.path());
        if let Some(file) = files.find(|file| file.extension().is_some_and(|end| end == "pcapng")) {
            return file;
        }
        assert!(started.elapsed() < LIMIT, "nothing was saved");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_person_sees_latencies_follows_a_packet_and_saves_a_capture_and_what_a_crash_left() {
    let Some((dir, manager, console, browser)) = stage(&["--allow-captures"]) else { return };
    heat_maps_show_where_time_goes(&browser);
    a_packets_way_is_drawn(&browser);
    a_capture_begins_in_the_graph_and_is_saved(&browser, &manager, dir.path());
    a_crash_tells_how_to_run_it_again(&browser);
    browser.run("document.querySelector('[name=span][value=short]').click()");
    browser.run("for (const table of document.querySelectorAll('details')) table.open = false");
    for look in LOOKS {
        browser.look(look);
        for name in VIEWS {
            browser.view(name);
            browser.looks_well(look, &format!("packets-{name}"));
        }
    }
    assert_eq!(browser.complaints(), Vec::<String>::new());
    drop(console);
}

fn heat_maps_show_where_time_goes(browser: &Browser) {
    browser.view("latency");
    browser.until(
        "three steps of each map are drawn",
        "document.querySelectorAll('.heat-axes').length === 6 && \
         document.querySelector('.heat-axes').getAttribute('aria-valuemax') >= 2",
    );
    let painted = browser.run(
        "return [...document.querySelectorAll('.heat canvas')].every((canvas) => canvas.getContext('2d') \
         .getImageData(0, 0, canvas.width, canvas.height).data.some((byte) => byte !== 0))",
    );
    assert_eq!(painted, true, "every map has cells");
    assert!(browser.text("#latencies").contains("1. fw: waiting in its ring"));
    assert!(browser.text("#latency-note").contains("one packet in 1\u{a0}ms"));
    // The keyboard chooses a time, whose figures are told.
    browser.run("document.querySelector('.heat-axes').focus()");
    browser.press("\u{e012}");
    let said = browser.run("return document.activeElement.getAttribute('aria-valuetext')");
    assert!(said.as_str().unwrap().contains("packets sampled, p50"), "{said}");
    browser
        .run("document.querySelector('.heat').parentElement.querySelector('details').open = true");
    browser.until(
        "numbers beside the picture",
        "document.querySelectorAll('#latency-charts details tbody tr').length >= 2",
    );
}

fn a_packets_way_is_drawn(browser: &Browser) {
    browser.view("traces");
    browser.write("#trace-form [name=match]", "ip_proto=udp");
    browser.click("#trace-form button");
    browser.until("a packet's way", "document.querySelector('#trace-packets svg.way rect.took')");
    let said = browser.run("return document.querySelector('svg.way').getAttribute('aria-label')");
    assert!(said.as_str().unwrap().contains("nf:fw#3 waited 5\u{a0}µs took 2\u{a0}µs"), "{said}");
    let text = browser.text("#trace-packets");
    assert!(text.contains("ipv4.ttl (byte 22): 40 → 3f") && text.contains("sent by wan"), "{text}");
    // What makes no sense is told, and nothing is begun.
    browser.write("#trace-form [name=match]", " colour");
    browser.click("#trace-form button");
    browser.until("why not", "document.getElementById('toast').innerText.includes('no match')");
}

fn a_capture_begins_in_the_graph_and_is_saved(
    browser: &Browser,
    manager: &FakeManager,
    directory: &Path,
) {
    browser.view("overview");
    browser.until(
        "places are links",
        "document.querySelector('#chains a[href*=\"port%3Alan%3Ain\"]')",
    );
    browser.click("#chains a[href*=\"port%3Alan%3Ain\"]");
    browser.until(
        "the form says where",
        "document.querySelector('#capture-form [name=at]').value === 'port:lan:in'",
    );
    assert!(browser.text("#capture-command").starts_with("millrace capture --at 'port:lan:in'"));
    browser.write("#capture-form [name=filter]", "tcp portt 80");
    browser.click("#capture-start");
    browser.until(
        "libpcap's words",
        "document.getElementById('toast').innerText.includes('syntax error')",
    );
    // The browser counts an answer of 400 as a complaint of its own.
    assert!(browser.complaints().iter().all(|line| line.contains("status of 400")));
    browser.run("document.querySelector('#capture-form [name=filter]').value = ''");
    browser.keep_files(directory);
    browser.click("#capture-start");
    browser.until(
        "it is listed",
        "document.querySelector('#captures tr')?.innerText.includes('port:lan:in')",
    );
    browser.until(
        "bytes have come",
        "/[1-9].*B so far/.test(document.getElementById('capture-progress').innerText)",
    );
    browser.click("#capture-stop");
    let bytes = std::fs::read(saved(directory)).unwrap();
    assert!(bytes.starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]), "a pcapng file");
    let started = Instant::now();
    while !manager.captures().is_empty() {
        assert!(started.elapsed() < LIMIT, "the capture has not ended");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn a_crash_tells_how_to_run_it_again(browser: &Browser) {
    browser.view("crashes");
    browser.until("the crash", "document.querySelector('#crashes .crash')");
    let text = browser.text("#crashes");
    assert!(text.contains("fw #3: exit status 101") && text.contains("no more"), "{text}");
    assert!(text.contains("millrace replay /var/lib/millrace/crashes/fw-3-1000"), "{text}");
    let links = browser.run(
        "return [...document.querySelectorAll('#crashes .files a')].map((link) => link.getAttribute('href'))",
    );
    assert_eq!(
        links,
        json!([
            "/api/v1/crashes/fw-3-1000/files/packets.pcapng",
            "/api/v1/crashes/fw-3-1000/files/last-words.txt"
        ])
    );
}

#[test]
fn a_page_that_may_not_give_packets_out_says_so_and_how_to_allow_it() {
    let Some((_dir, manager, _console, browser)) = stage(&[]) else { return };
    for name in ["traces", "captures", "crashes"] {
        browser.view(name);
        let view = format!("#view-{name}");
        browser.until(
            "why not",
            &format!("document.querySelector('{view} .forbidden').offsetParent !== null"),
        );
        assert!(browser.text(&view).contains("--allow-captures"));
        let forms = browser.run(&format!(
            "return [...document.querySelectorAll('{view} form, {view} a[download]')] \
             .filter((node) => node.offsetParent !== null).length"
        ));
        assert_eq!(forms, 0, "{name}");
        browser.looks_well(LOOKS[0], &format!("read-only-{name}"));
    }
    browser.view("overview");
    assert_eq!(browser.run("return document.querySelectorAll('#chains a').length"), 0);
    // What is known without packets is shown.
    browser.view("latency");
    browser.until("maps", "document.querySelectorAll('.heat-axes').length === 6");
    drop(manager);
    browser.until("the page says that it is away", "document.body.dataset.state === 'away'");
}
