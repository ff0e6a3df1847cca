//! The page in a real browser, with a real manager, real NFs and traffic behind it.

#[path = "common/browser.rs"]
mod browser;
mod common;
#[path = "common/lab.rs"]
mod lab;

use browser::{Browser, LOOKS};
use common::Console;
use lab::Lab;
use std::time::Duration;

const VIEWS: [&str; 11] = [
    "overview", "ports", "nfs", "cores", "drops", "rules", "latency", "traces", "captures",
    "timeline", "crashes",
];

fn stage(options: &[&str]) -> Option<(Lab, Console, Browser)> {
    let browser = Browser::start()?;
    let lab = Lab::start()?;
    let console = Console::start_with(&lab.socket(), options);
    console.wait_for_code(200);
    browser.open(&format!("http://{}/", console.address));
    browser.until("the page is live", "document.body.dataset.state === 'live'");
    Some((lab, console, browser))
}

/// A rate as the page writes it: `12.3 kpps`.
fn pps(text: &str) -> f64 {
    let (number, unit) = text.split_once('\u{a0}').unwrap_or_else(|| panic!("{text:?}"));
    let factor = match unit {
        "pps" => 1.0,
        "kpps" => 1e3,
        "Mpps" => 1e6,
        _ => panic!("{text:?}"),
    };
    factor * number.parse::<f64>().unwrap_or_else(|_| panic!("{text:?}"))
}

#[test]
fn a_person_sees_the_traffic_a_crash_the_recovery_and_a_rule_that_moves_packets() {
    let Some((mut lab, _console, browser)) = stage(&["--allow-changes"]) else { return };
    shown_rates_are_the_counters(&lab, &browser);
    let killed = a_crash_is_told_and_so_is_the_recovery(&lab, &browser);
    a_packet_is_followed(&browser);
    a_capture_is_saved_that_tshark_reads(&browser);
    latencies_are_drawn(&browser);
    what_is_left_of_a_crash_is_a_click_away(&browser, killed);
    a_rule_moves_the_traffic(&browser);
    a_button_scales(&lab, &browser);
    every_view_looks_well(&browser);
    the_manager_goes_and_comes(&mut lab, &browser);
    assert_eq!(browser.complaints(), Vec::<String>::new());
    lab.stop();
}

fn shown_rates_are_the_counters(lab: &Lab, browser: &Browser) {
    browser.view("ports");
    browser.until(
        "a rate is shown",
        "document.querySelector('#ports td.number .main')?.innerText.includes('kpps')",
    );
    // Shown rates are up to a second old; on a machine that others use, too, one window in which the
    // real rate stays the same may have to be waited for.
    let mut tried = Vec::new();
    for _ in 0..5 {
        let before = lab.status().unwrap();
        let mut shown = Vec::new();
        for _ in 0..6 {
            std::thread::sleep(Duration::from_secs(1));
            shown.push(pps(&browser.text("#ports tr:first-child td:nth-child(3) .main")));
        }
        let after = lab.status().unwrap();
        let pkts = after.ports[0].rx_pkts - before.ports[0].rx_pkts;
        let counted = pkts as f64 / ((after.at_ns - before.at_ns) as f64 / 1e9);
        let mean = shown.iter().sum::<f64>() / shown.len() as f64;
        if (mean / counted - 1.0).abs() < 0.05 {
            return;
        }
        tried.push((shown, counted));
    }
    panic!("shown and counted: {tried:?}");
}

fn a_crash_is_told_and_so_is_the_recovery(lab: &Lab, browser: &Browser) -> u32 {
    browser.view("overview");
    let killed = lab.kill_nf("fw");
    let entry = |kind: &str, text: &str| {
        format!(
            "[...document.querySelectorAll('#latest li')].some((entry) => \
             entry.querySelector('.kind').innerText === '{kind}' && entry.innerText.includes('{text}'))"
        )
    };
    browser
        .until("the crash is told", &entry("crash", &format!("NF #{killed} of service fw ended")));
    browser.until("another is started", &entry("start", "of service fw attached"));
    lab.until("both run again", |status| status.nfs.len() == 3);
    killed
}

/// The link to it stands in the timeline.
fn what_is_left_of_a_crash_is_a_click_away(browser: &Browser, killed: u32) {
    browser.view("timeline");
    let link =
        "[...document.querySelectorAll('#timeline a')].find((link) => link.offsetParent !== null)";
    browser.until("what is left is linked", link);
    browser.run(&format!("{link}.click()"));
    browser.until("its crash", "document.querySelector('#crashes .crash')?.offsetParent");
    let text = browser.text("#crashes");
    assert!(
        text.contains(&format!("fw #{killed}")) && text.contains("millrace replay /"),
        "{text}"
    );
    assert!(
        browser.run("return document.querySelectorAll('#crashes .files a').length").as_u64()
            > Some(2)
    );
}

fn a_packet_is_followed(browser: &Browser) {
    browser.view("traces");
    browser.write("#trace-form [name=match]", "ip_proto=udp");
    browser.click("#trace-form button");
    browser.until(
        "the ways of three packets",
        "document.querySelectorAll('#trace-packets svg.way rect.took').length >= 6",
    );
    let text = browser.text("#trace-packets");
    assert!(text.contains("sent by wan") && text.contains("chain default"), "{text}");
}

fn a_capture_is_saved_that_tshark_reads(browser: &Browser) {
    let directory = tempfile::tempdir().unwrap();
    browser.keep_files(directory.path());
    browser.view("overview");
    let link = "#chains a[href*=\"nf%3Afw%23\"]";
    browser.until("NFs are links to captures", &format!("document.querySelector({link:?})"));
    browser.click(link);
    browser.write("#capture-form [name=count]", "25");
    browser.write("#capture-form [name=filter]", "udp");
    browser.click("#capture-start");
    browser.until("it is saved", "document.getElementById('toast').innerText.startsWith('Saved')");
    let mut saved = Vec::new();
    lab::until("the file is there", || {
        let files = std::fs::read_dir(directory.path()).unwrap().filter_map(Result::ok);
        let named =
            files.map(|file| file.path()).find(|file| file.extension() == Some("pcapng".as_ref()));
        saved = named.map(|file| std::fs::read(file).unwrap()).unwrap_or_default();
        !saved.is_empty()
    });
    let packets = lab::packets_by_tshark(&saved);
    assert!(packets.is_none_or(|packets| packets == 25), "{packets:?}");
}

fn latencies_are_drawn(browser: &Browser) {
    browser.view("latency");
    browser.until(
        "a map of the whole way and two of each hop",
        "document.querySelectorAll('.heat-axes').length === 5",
    );
    let text = browser.text("#latencies");
    for part in ["Port to port", "1. fw: waiting in its ring", "2. nat: with the NF"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

fn confirm(browser: &Browser) {
    browser.until("what would change is shown", "document.getElementById('dialog').open");
    browser.click("#dialog-yes");
    browser.until("it is done", "document.getElementById('toast').innerText.startsWith('Done')");
}

fn a_rule_moves_the_traffic(browser: &Browser) {
    browser.view("rules");
    browser.write("#rule-form [name=name]", "all-short");
    browser.run("document.querySelector('#rule-form [name=action]').value = 'chain=short'");
    browser.click("#rule-form button");
    browser.until("what would change is shown", "document.getElementById('dialog').open");
    assert_eq!(browser.text("#dialog-lines"), "+ rule 0/100 * (every packet): chain=short");
    confirm(browser);
    let chain = |name: &str| {
        format!(
            "[...document.querySelectorAll('#chain-list tr')].find((row) => \
             row.innerText.startsWith('{name}')).querySelector('td.number .main').innerText"
        )
    };
    browser.until(
        "the rule is listed",
        "document.getElementById('rules').innerText.includes('all-short')",
    );
    browser.until(
        "no packet enters the default chain",
        &format!("{} === '0\\u00a0pps'", chain("default")),
    );
    let moved = browser.run(&format!("return {}", chain("short")));
    let share = pps(moved.as_str().unwrap()) / f64::from(lab::RATE_PPS);
    assert!(share > 0.5, "packets take the other chain: {moved}");
    // What becomes of a packet is told in words.
    browser.click("#explain-form button");
    browser.until(
        "the explanation",
        "document.getElementById('explanation').innerText.includes('chain short')",
    );
}

fn a_button_scales(lab: &Lab, browser: &Browser) {
    browser.view("nfs");
    browser.until("the buttons are there", "document.querySelector('#services td.buttons button')");
    browser.click("#services tr:first-child td.buttons button");
    browser.until("what would change is shown", "document.getElementById('dialog').open");
    assert!(browser.text("#dialog-lines").contains("service fw: 2 → 3 instances"));
    // The keyboard is enough: Tab to the second button, Enter.
    browser.press("\u{e004}\u{e007}");
    lab.until("three instances", |status| status.services[0].instances.len() == 3);
    browser
        .until("a card for each", "document.querySelectorAll('#nf-charts section').length === 4");
}

fn every_view_looks_well(browser: &Browser) {
    for look in LOOKS {
        browser.look(look);
        for name in VIEWS {
            browser.view(name);
            browser.looks_well(look, name);
        }
    }
    browser.look(LOOKS[0]);
}

fn the_manager_goes_and_comes(lab: &mut Lab, browser: &Browser) {
    browser.view("overview");
    lab.stop();
    browser.until("the page says that it is away", "document.body.dataset.state === 'away'");
    assert!(browser.text("#banner").contains("The manager is away"), "{}", browser.text("#banner"));
    browser.picture("light-away");
    lab.start_again();
    browser.until("the page goes on by itself", "document.body.dataset.state === 'live'");
    assert_eq!(browser.run("return document.getElementById('banner').hidden"), true);
}

#[test]
fn a_page_of_a_console_that_only_shows_has_nothing_to_change_with() {
    let Some((_lab, _console, browser)) = stage(&[]) else { return };
    for name in ["rules", "nfs"] {
        browser.view(name);
        std::thread::sleep(Duration::from_millis(500));
        let shown = browser.run(
            "return [...document.querySelectorAll('.view:not([hidden]) [data-changes], \
             .view:not([hidden]) td.buttons')].filter((node) => node.offsetParent !== null).length",
        );
        assert_eq!(shown, 0, "{name}");
    }
    let faster = browser.run(
        "document.getElementById('hz').value = '10'; \
        document.getElementById('hz').dispatchEvent(new Event('change')); return true",
    );
    assert_eq!(faster, true);
    browser.until("figures come faster", "document.body.dataset.state === 'live'");
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn who_has_the_token_gets_in_by_the_form() {
    use std::os::unix::fs::PermissionsExt as _;
    let Some(browser) = Browser::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (socket, file) = (dir.path().join("manager.sock"), dir.path().join("token"));
    std::fs::write(&file, "correct-horse-battery-staple\n").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let _manager = common::FakeManager::start(&socket, common::Answer::Full);
    let console = Console::start_with(&socket, &["--token-file", file.to_str().unwrap()]);
    browser.open(&format!("http://{}/", console.address));
    browser.until("the form", "location.pathname === '/login'");
    browser.write("#token", "wrong");
    browser.click("#login button");
    browser.until(
        "the refusal",
        "document.getElementById('problem').innerText.includes('not the token')",
    );
    browser.picture("light-login");
    browser.write("#token", "\u{e003}correct-horse-battery-staple");
    browser.click("#login button");
    browser
        .until("the page", "location.pathname === '/' && document.body.dataset.state === 'live'");
    browser.until("who is logged in can log out", "!document.getElementById('log-out').hidden");
    browser.click("#log-out");
    browser.until("the form again", "location.pathname === '/login'");
}
