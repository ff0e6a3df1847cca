//! The console and its operations with a real manager, real NFs and traffic.

mod common;
#[path = "common/lab.rs"]
mod lab;

use common::Console;
use lab::Lab;
use nflib::control::{Applied, Explanation};
use serde_json::{Value, json};

/// `interval_ms`: how often the console asks the manager by itself.
fn stage(interval_ms: &str) -> Option<(Lab, Console)> {
    let lab = Lab::start()?;
    let options = ["--interval-ms", interval_ms, "--allow-changes"];
    let console = Console::start_with(&lab.socket(), &options);
    console.wait_for_code(200);
    Some((lab, console))
}

#[track_caller]
fn done(console: &Console, method: &str, path: &str, body: &Value) -> Applied {
    let response = console.send(method, path, &body.to_string());
    assert_eq!(response.code, 200, "{method} {path}: {}", response.body);
    serde_json::from_str(&response.body).unwrap()
}

#[test]
fn what_is_asked_for_over_http_is_what_runs() {
    let Some((mut lab, console)) = stage("10000") else { return };
    let rule = json!({ "name": "all", "priority": 7, "then": { "chain": "short" } });
    let id = done(&console, "POST", "/api/v1/rules", &rule).rule_ids[0];
    lab.until("packets match the rule", |status| {
        status.rules.iter().any(|rule| rule.id == id && rule.pkts > 0)
    });
    let explained = console.get("/api/v1/flows/explain?packet=udp%2010.0.0.1:1%2010.0.0.2:2");
    let explained: Explanation = serde_json::from_str(&explained.body).unwrap();
    assert_eq!((explained.chain.as_deref(), explained.end.as_str()), (Some("short"), "out=wan"));
    let flows = console.get("/api/v1/flows?limit=3").json();
    assert_eq!(flows["flows"].as_array().unwrap().len(), 3);
    done(&console, "DELETE", "/api/v1/rules/all", &json!({}));

    let instances = json!({ "instances": 3 });
    done(&console, "PUT", "/api/v1/services/fw/instances", &instances);
    let status = lab.until("three instances", |status| status.services[0].instances.len() == 3);
    let called = console.send("POST", "/api/v1/services/fw/call", r#"{"text":"help"}"#).json();
    assert_eq!(called.as_array().unwrap().len(), 3, "{called}");
    let stopped = status.services[0].instances[0];
    assert_eq!(console.send("DELETE", &format!("/api/v1/nfs/{stopped}"), "").code, 204);
    lab.until("one is gone", |status| status.nfs.iter().all(|nf| nf.instance != stopped));

    let chain = json!({ "name": "other", "services": ["nat"], "end": "drop" });
    done(&console, "POST", "/api/v1/chains", &chain);
    assert_eq!(console.send("POST", "/api/v1/chains", &chain.to_string()).code, 409);
    done(&console, "PUT", "/api/v1/chains/other", &json!({ "name": "other", "services": [] }));
    let kept = console.send("DELETE", "/api/v1/chains/nowhere", "");
    assert_eq!(kept.code, 404, "{}", kept.body);
    done(&console, "DELETE", "/api/v1/chains/other", &json!({}));

    let buffers = console.get("/api/v1/buffers").json();
    assert_eq!((&buffers["balanced"], &buffers["total"]), (&json!(true), &json!(16_384)));
    lab.stop();
}

#[test]
fn a_file_is_compared_before_it_is_applied() {
    let Some((mut lab, console)) = stage("10000") else { return };
    let text = lab.text().replace("services = [\"fw\", \"nat\"]", "services = [\"nat\", \"fw\"]");
    let file = json!({ "path": "m.toml", "text": text });
    let diff = done(&console, "POST", "/api/v1/config/diff", &file);
    assert_eq!(diff.changes.len(), 1, "{diff:?}");
    let applied = done(&console, "POST", "/api/v1/config/apply", &file);
    assert_eq!(applied.changes, diff.changes);
    assert_eq!(done(&console, "POST", "/api/v1/config/diff", &file).changes, []);
    // Who changes something and looks sees what was changed, however seldom the console asks.
    let chain = console.get("/api/v1/chains/default").json();
    assert_eq!(chain["services"], json!(["nat", "fw"]));
    let bad = json!({ "text": "[[chain]]\nname = 1" });
    let refused = console.send("POST", "/api/v1/config/apply", &bad.to_string());
    assert_eq!(refused.code, 409, "{}", refused.body);
    let checked = console.send("POST", "/api/v1/config/check", &bad.to_string()).json();
    assert!(checked["good"] == false && checked["problem"].is_string(), "{checked}");
    lab.stop();
}

#[test]
fn rates_and_counters_are_those_of_the_manager() {
    let Some((mut lab, console)) = stage("100") else { return };
    // A second of figures, at ten a second.
    let mut last = Value::Null;
    let mut sum = 0.0;
    let mut seconds = 0.0;
    let before = lab.status().unwrap();
    for (_, data) in console.events().filter(|(_, data)| data["rates"].is_object()).take(20) {
        let interval_s = data["rates"]["interval_s"].as_f64().unwrap();
        sum += data["rates"]["ports"][0]["rx_pps"].as_f64().unwrap() * interval_s;
        seconds += interval_s;
        last = data;
    }
    let after = lab.status().unwrap();
    let counted = (after.ports[0].rx_pkts - before.ports[0].rx_pkts) as f64
        / ((after.at_ns - before.at_ns) as f64 / 1e9);
    let shown = sum / seconds;
    assert!((shown / counted - 1.0).abs() < 0.1, "shown {shown}, counted {counted}");
    assert_eq!(last["status"]["accounting"]["balanced"], true);
    let metrics = console.get("/metrics").body;
    assert!(metrics.contains("\nmillrace_books_balanced 1\n"));
    assert!(metrics.contains("millrace_service_instances{service=\"fw\"} 2"));
    lab.stop();
}
