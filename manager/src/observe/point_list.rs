//! The points that there are now: what `millrace capture points` and Wireshark's list of interfaces show.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use nflib::control::CapturePoint;
use nflib::descriptor::ServiceId;

use super::directory::{Directory, NfName};

/// Most points that are listed: an answer has to stay readable for its reader, and rings grow with the
/// square of the NFs.
pub const MAX_POINTS: usize = 4096;

/// Ports, services, their instances, every ring, and drops; not more than [`MAX_POINTS`].
#[must_use]
pub fn capture_points(directory: &Directory) -> Vec<CapturePoint> {
    let point = |at: String, description: String| CapturePoint { at, description };
    let mut points = Vec::new();
    for name in directory.ports() {
        points.push(point(format!("port:{name}"), format!("port {name}, in and out")));
        points.push(point(format!("port:{name}:in"), format!("what port {name} receives")));
        points.push(point(format!("port:{name}:out"), format!("what port {name} sends")));
    }
    points.push(point("drop".into(), "every dropped packet".into()));
    let services: BTreeSet<_> =
        directory.services().iter().map(|service| service.name.clone()).collect();
    for name in &services {
        points.push(point(format!("nf:{name}"), format!("all NFs of {name}, in and out")));
        points.push(point(format!("drop:{name}"), format!("packets dropped at {name}")));
    }
    let nfs: Vec<_> = directory.nfs().collect();
    for nf in &nfs {
        let (who, what) = (who(nf), format!("NF {} of {}", nf.instance, nf.service_name));
        points.push(point(format!("nf:{who}:in"), format!("what {what} takes")));
        points.push(point(format!("nf:{who}:out"), format!("what {what} decided about")));
        points.push(point(format!("ring:manager:{who}"), format!("from the manager to {what}")));
        points.push(point(format!("ring:{who}:manager"), format!("from {what} to the manager")));
    }
    let neighbours = neighbours(directory);
    for from in nfs.iter().filter(|nf| !nf.isolated) {
        for to in nfs.iter().filter(|nf| !nf.isolated) {
            if points.len() >= MAX_POINTS {
                break;
            }
            if neighbours.contains(&(from.service, to.service)) {
                let (from, to) = (who(from), who(to));
                points.push(point(
                    format!("ring:{from}:{to}"),
                    format!("straight from {from} to {to}"),
                ));
            }
        }
    }
    points.truncate(MAX_POINTS);
    points
}

fn who(nf: &NfName) -> String {
    format!("{}#{}", nf.service_name, nf.instance)
}

/// Services that follow each other on a route.
fn neighbours(directory: &Directory) -> BTreeSet<(ServiceId, ServiceId)> {
    let pairs = directory.routes().flat_map(|(_, route)| route.hops.windows(2));
    pairs.map(|pair| (pair[0].service, pair[1].service)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::points::Point;
    use super::super::points::tests::directory;
    use super::*;

    #[test]
    fn every_point_listed_is_one_that_can_be_asked_for() {
        let directory = directory();
        let points = capture_points(&directory);
        for point in &points {
            let parsed = Point::parse(&point.at, &directory);
            let point_of = parsed.unwrap_or_else(|error| panic!("{}: {error}", point.at));
            assert!(!point_of.taps(0, &[], 0, &directory).is_empty(), "{}", point.at);
        }
        let listed: Vec<_> = points.iter().map(|point| point.at.as_str()).collect();
        for at in ["port:lan", "port:wan:in", "nf:nat", "nf:firewall#3:in", "drop", "drop:nat"] {
            assert!(listed.contains(&at), "{at} is not in {listed:?}");
        }
        let rings: Vec<_> = listed.iter().filter(|at| at.starts_with("ring:")).collect();
        // Four NFs, each with two rings to and from the manager, and two edges; the isolated one has none.
        assert_eq!(rings.len(), 10, "{rings:?}");
        assert!(listed.contains(&"ring:firewall#3:nat#5"));
        let unique: BTreeSet<_> = listed.iter().collect();
        assert_eq!(unique.len(), listed.len());
    }
}
