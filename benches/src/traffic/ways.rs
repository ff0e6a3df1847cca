//! Which way each flow came, from phase to phase.
//!
//! A *way* is the list of services and instances that a packet's trail names; a *course* is its services
//! alone. Between two phases somebody changed something: flows whose ways at the ends of the two differ
//! have moved.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};

use nflib::trail::{Step, Trail};
use serde::Serialize;

use super::label::Kind;

/// Services and instances, in order.
type Way = Vec<(u16, u32)>;
/// A number for a way.
type WayId = u32;

/// Services alone, as reports show them: `1,2`; the empty course is `-`.
#[must_use]
pub fn course_name(services: impl IntoIterator<Item = u16>) -> String {
    let names: Vec<_> = services.into_iter().map(|service| service.to_string()).collect();
    if names.is_empty() { "-".to_owned() } else { names.join(",") }
}

/// The ways of one flow.
#[derive(Clone, Debug, Default)]
pub struct FlowWays {
    /// Phases rising.
    phases: Vec<FlowPhase>,
}

/// One flow in one phase.
#[derive(Clone, Copy, Debug)]
struct FlowPhase {
    phase: u16,
    /// The last one.
    way: WayId,
    /// How often it became another, the phase before taken as the start.
    changes: u32,
}

/// The ways of all flows.
#[derive(Debug, Default)]
pub struct Ways {
    ids: HashMap<Way, WayId>,
    ways: Vec<Way>,
    /// Packets by course and kind.
    courses: BTreeMap<(Kind, String), u64>,
    course_of_way: Vec<String>,
    packets_of_way: Vec<[u64; 2]>,
    /// Courses that a packet may take; empty: all.
    allowed: Vec<String>,
    /// Packets whose course is none of those allowed, or that changed routes on their way.
    pub mixed: u64,
    /// The first few of them.
    pub mixed_examples: Vec<String>,
}

/// How many examples of what must not be a report shows.
const EXAMPLES: usize = 5;

impl Ways {
    /// `allowed`: courses as [`course_name`] writes them; none: all.
    #[must_use]
    pub fn new(allowed: Vec<String>) -> Self {
        Self { allowed, ..Self::default() }
    }

    /// Notes the way of a packet. One that is out of order by phase counts for no phase.
    pub fn note(&mut self, flow: &mut FlowWays, phase: u16, kind: Kind, trail: &Trail<'_>) {
        let id = self.id_of(trail);
        self.packets_of_way[id as usize][kind as usize] += 1;
        self.judge(id, trail);
        match flow.phases.last_mut() {
            Some(now) if now.phase == phase => {
                now.changes += u32::from(now.way != id);
                now.way = id;
            }
            Some(last) if last.phase > phase => {}
            last => {
                let changes = u32::from(last.is_some_and(|last| last.way != id));
                flow.phases.push(FlowPhase { phase, way: id, changes });
            }
        }
    }

    fn id_of(&mut self, trail: &Trail<'_>) -> WayId {
        let way: Way = trail.steps().map(|step| (step.service, step.instance)).collect();
        if let Some(&id) = self.ids.get(&way) {
            return id;
        }
        let id = self.ways.len() as WayId;
        self.course_of_way.push(course_name(way.iter().map(|&(service, _)| service)));
        self.packets_of_way.push([0; 2]);
        self.ways.push(way.clone());
        self.ids.insert(way, id);
        id
    }

    /// A packet takes one chain from its start to its end.
    fn judge(&mut self, id: WayId, trail: &Trail<'_>) {
        let course = &self.course_of_way[id as usize];
        let mut routes = trail.steps().map(|step| step.route);
        let first = routes.next();
        let one_route = routes.all(|route| Some(route) == first);
        let known = self.allowed.is_empty() || self.allowed.contains(course);
        if one_route && known && trail.missing() == 0 {
            return;
        }
        self.mixed += 1;
        if self.mixed_examples.len() < EXAMPLES {
            let show = |Step { service, route, instance }| {
                format!("service {service} instance {instance} route {route}")
            };
            let steps: Vec<_> = trail.steps().map(show).collect();
            self.mixed_examples.push(format!("{} (+{})", steps.join(", "), trail.missing()));
        }
    }

    /// Packets by kind and course.
    #[must_use]
    pub fn packets_by_course(&mut self) -> BTreeMap<&'static str, BTreeMap<String, u64>> {
        self.courses.clear();
        for (course, pkts) in self.course_of_way.iter().zip(&self.packets_of_way) {
            for kind in Kind::ALL {
                if pkts[kind as usize] > 0 {
                    *self.courses.entry((kind, course.clone())).or_default() += pkts[kind as usize];
                }
            }
        }
        let mut by_kind: BTreeMap<&'static str, BTreeMap<String, u64>> = BTreeMap::new();
        for ((kind, course), &pkts) in &self.courses {
            by_kind.entry(kind.name()).or_default().insert(course.clone(), pkts);
        }
        by_kind
    }

    /// What each phase was like at its end, by kind.
    #[must_use]
    pub fn phases<'f>(
        &self,
        flows: impl Iterator<Item = (Kind, &'f FlowWays)>,
    ) -> Vec<PhaseReport> {
        let mut phases: BTreeMap<(u16, Kind), PhaseReport> = BTreeMap::new();
        for (kind, flow) in flows {
            let mut before: Option<FlowPhase> = None;
            for &now in &flow.phases {
                let report = phases.entry((now.phase, kind)).or_insert_with(|| PhaseReport {
                    phase: now.phase,
                    kind: kind.name(),
                    ..PhaseReport::default()
                });
                self.add_flow(report, now.way);
                if let Some(old) = before.filter(|old| old.phase.checked_add(1) == Some(now.phase))
                {
                    report.compared_flows += 1;
                    report.moved_flows += u64::from(old.way != now.way);
                    report.most_changes = report.most_changes.max(now.changes);
                }
                before = Some(now);
            }
        }
        let with_share = |mut report: PhaseReport| {
            if report.compared_flows > 0 {
                let share = report.moved_flows as f64 / report.compared_flows as f64;
                report.moved_share = Some((share * 1e4).round() / 1e4);
            }
            report
        };
        phases.into_values().map(with_share).collect()
    }

    fn add_flow(&self, report: &mut PhaseReport, id: WayId) {
        report.flows += 1;
        *report.courses.entry(self.course_of_way[id as usize].clone()).or_default() += 1;
        for &(service, instance) in &self.ways[id as usize] {
            *report.instances.entry(service).or_default().entry(instance).or_default() += 1;
        }
    }
}

/// The flows of one kind as they were at the end of one phase.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PhaseReport {
    /// The phase.
    pub phase: u16,
    /// The kind.
    pub kind: &'static str,
    /// Flows that sent in this phase.
    pub flows: u64,
    /// Flows by course.
    pub courses: BTreeMap<String, u64>,
    /// Flows by service and instance.
    pub instances: BTreeMap<u16, BTreeMap<u32, u64>>,
    /// Flows that sent in this phase and in the one before.
    pub compared_flows: u64,
    /// Those of them that end this phase on another way than that one.
    pub moved_flows: u64,
    /// Most times that one of them changed its way from the end of that phase to the end of this.
    pub most_changes: u32,
    /// Their share; `None` when there was nothing to compare.
    pub moved_share: Option<f64>,
}

#[cfg(test)]
mod tests {
    use nflib::testing::FrameBuilder;
    use nflib::{headers::Headers, trail};

    use super::*;

    /// A payload that went this way.
    fn payload(steps: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut payload = Vec::new();
        trail::begin(&mut payload, 4);
        let any = std::net::Ipv4Addr::LOCALHOST;
        let builder = FrameBuilder::new().ip(any.into(), any.into()).udp(1, 2);
        let mut frame = builder.payload(&payload).build();
        for &(service, route, instance) in steps {
            trail::stamp(&mut frame, Step { service, route, instance });
        }
        let headers = Headers::parse(&frame);
        headers.payload(&frame).to_vec()
    }

    fn note(ways: &mut Ways, flow: &mut FlowWays, phase: u16, steps: &[(u16, u16, u32)]) {
        let payload = payload(steps);
        ways.note(flow, phase, Kind::Udp, &Trail::read(&payload).unwrap());
    }

    #[test]
    fn a_flow_has_moved_when_its_ways_at_the_ends_of_two_phases_differ() {
        let mut ways = Ways::new(vec![]);
        let mut flows = [FlowWays::default(), FlowWays::default()];
        for flow in &mut flows {
            note(&mut ways, flow, 0, &[(1, 0, 10), (2, 0, 20)]);
        }
        // The first moves in phase 1, the second not.
        note(&mut ways, &mut flows[0], 1, &[(1, 0, 10), (2, 0, 20)]);
        note(&mut ways, &mut flows[0], 1, &[(1, 0, 10), (2, 0, 21)]);
        note(&mut ways, &mut flows[1], 1, &[(1, 0, 10), (2, 0, 20)]);
        let phases = ways.phases(flows.iter().map(|flow| (Kind::Udp, flow)));
        assert_eq!(phases.len(), 2);
        assert_eq!((phases[0].flows, phases[0].moved_share), (2, None));
        assert_eq!((phases[1].moved_flows, phases[1].moved_share), (1, Some(0.5)));
        assert_eq!(phases[1].instances[&2], BTreeMap::from([(20, 1), (21, 1)]));
        assert_eq!(phases[1].courses, BTreeMap::from([("1,2".to_owned(), 2)]));
        assert_eq!(phases[1].most_changes, 1);
        assert_eq!(ways.packets_by_course()["udp"]["1,2"], 5);
    }

    #[test]
    fn a_flow_that_was_silent_for_a_phase_is_not_compared() {
        let mut ways = Ways::new(vec![]);
        let mut flow = FlowWays::default();
        note(&mut ways, &mut flow, 0, &[(1, 0, 10)]);
        note(&mut ways, &mut flow, 2, &[(1, 0, 11)]);
        let phases = ways.phases([(Kind::Udp, &flow)].into_iter());
        assert_eq!((phases[1].phase, phases[1].compared_flows), (2, 0));
    }

    #[test]
    fn going_to_and_fro_within_a_phase_is_seen() {
        let mut ways = Ways::new(vec![]);
        let mut flow = FlowWays::default();
        note(&mut ways, &mut flow, 0, &[(1, 0, 1)]);
        // The change from one phase to the next counts for the next.
        for instance in [2, 1, 2] {
            note(&mut ways, &mut flow, 1, &[(1, 0, instance)]);
        }
        note(&mut ways, &mut flow, 2, &[(1, 0, 2)]);
        let phases = ways.phases([(Kind::Udp, &flow)].into_iter());
        let changes: Vec<_> = phases.iter().map(|phase| phase.most_changes).collect();
        assert_eq!(changes, [0, 3, 0]);
    }

    #[test]
    fn courses_that_are_not_allowed_and_trails_of_two_routes_are_mixed() {
        let mut ways = Ways::new(vec!["1,2".into(), "3".into()]);
        let mut flow = FlowWays::default();
        let good: [&[(u16, u16, u32)]; 2] = [&[(1, 0, 1), (2, 0, 1)], &[(3, 1, 1)]];
        for steps in good {
            note(&mut ways, &mut flow, 0, steps);
        }
        assert_eq!(ways.mixed, 0);
        let bad: [&[(u16, u16, u32)]; 4] =
            [&[(1, 0, 1), (2, 1, 1)], &[(1, 0, 1)], &[], &[(2, 0, 1), (1, 0, 1)]];
        for steps in bad {
            note(&mut ways, &mut flow, 0, steps);
        }
        assert_eq!(ways.mixed, 4);
        assert_eq!(ways.mixed_examples.len(), 4);
    }
}
