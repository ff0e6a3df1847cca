//! Names of all that events mention by number: ports, NFs, routes and their hops, services, reasons.
//!
//! Numbers of routes and NFs are used again. So the directory keeps for each number who had it and since
//! when, and is asked with the time of the event:
//!
//! - A route's name begins at the moment when the route was written to the table. Its number is free for
//!   another one only after the workers said that its last packet is out, so no event of a packet on the old
//!   route is later than that moment, and none on the new one earlier: the time tells them apart exactly.
//! - An NF's name begins when its number is first seen to be its. Numbers of NFs go round all 4,096, so
//!   the last one to have a number is far away in time.
//! - Names stay for [`KEPT_NS`] after their end, for events that are still in rings and packets whose way
//!   is not yet put together.
//!
//! The control thread makes the directory anew after each change, some microseconds after the workers have
//! been told to follow it. Whoever names packets at the end of their way has the right one; a name asked for at
//! once may be missing for that long, and is then `None` instead of wrong, since what ended is known to have.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use nflib::descriptor::{PortId, RouteId, ServiceId};
use nflib::observe::NOBODY;

use crate::conductor::Conductor;
use crate::fabric::Fabric;
use crate::model::Model;
use crate::plan::{NfNumber, Route};
use crate::stats::DropReason;

/// How long a name outlives what it named, nanoseconds.
pub const KEPT_NS: u64 = 120_000_000_000;
/// Names that a number has had and that are kept, at most.
const MAX_FORMER: usize = 8;

/// An NF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NfName {
    /// Its number.
    pub nf: NfNumber,
    /// Its instance id.
    pub instance: u32,
    /// The service it provides.
    pub service: ServiceId,
    /// The service's name.
    pub service_name: Arc<str>,
    /// The service's place among the workers' counters.
    pub slot: u16,
    /// It has no direct edges.
    pub isolated: bool,
}

impl NfName {
    /// As a place is written: `nf:firewall#3`.
    #[must_use]
    pub fn place(&self) -> String {
        format!("nf:{}#{}", self.service_name, self.instance)
    }
}

/// A position in a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HopName {
    /// The service there.
    pub service: ServiceId,
    /// Its name.
    pub name: Arc<str>,
}

/// A route: a version of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteName {
    /// The chain.
    pub chain: Arc<str>,
    /// Its hops, in order.
    pub hops: Vec<HopName>,
}

/// A service with a place among the workers' counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceName {
    /// Its id.
    pub service: ServiceId,
    /// Its name; of one that is gone, its last.
    pub name: Arc<str>,
}

/// Something that a number meant from a moment on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Term<T> {
    since_ns: u64,
    /// `None`: still.
    until_ns: Option<u64>,
    is: T,
}

/// What a number meant, oldest first; shared among the directories in which that is the same.
type Terms<T> = Arc<Vec<Term<T>>>;

/// All names at a moment.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    /// Counts the changes.
    pub generation: u64,
    ports: Arc<[Arc<str>]>,
    nfs: BTreeMap<NfNumber, Terms<Arc<NfName>>>,
    routes: BTreeMap<RouteId, Terms<Arc<RouteName>>>,
    /// By slot.
    services: Vec<ServiceName>,
}

impl Directory {
    /// A directory of given names, all of them valid for ever. For tests, and for events of no manager.
    #[must_use]
    pub fn of(
        ports: &[&str],
        services: Vec<ServiceName>,
        nfs: Vec<NfName>,
        routes: Vec<(RouteId, RouteName)>,
    ) -> Self {
        fn always<T>(is: T) -> Terms<Arc<T>> {
            Arc::new(vec![Term { since_ns: 0, until_ns: None, is: Arc::new(is) }])
        }
        Self {
            generation: 1,
            ports: ports.iter().map(|&name| Arc::from(name)).collect(),
            nfs: nfs.into_iter().map(|nf| (nf.nf, always(nf))).collect(),
            routes: routes.into_iter().map(|(id, route)| (id, always(route))).collect(),
            services,
        }
    }

    /// The name of a port.
    #[must_use]
    pub fn port(&self, port: PortId) -> Option<&Arc<str>> {
        self.ports.get(usize::from(port))
    }

    /// The ports' names, by number.
    #[must_use]
    pub fn ports(&self) -> &[Arc<str>] {
        &self.ports
    }

    /// The number of a port.
    #[must_use]
    pub fn port_named(&self, name: &str) -> Option<PortId> {
        let at = self.ports.iter().position(|port| **port == *name)?;
        PortId::try_from(at).ok()
    }

    /// The NF that had a number at `time_ns`, nanoseconds of CLOCK_MONOTONIC; `None` for
    /// [`NOBODY`], and where nobody is known.
    #[must_use]
    pub fn nf(&self, nf: NfNumber, time_ns: u64) -> Option<&Arc<NfName>> {
        if nf == NOBODY {
            return None;
        }
        let terms = self.nfs.get(&nf)?;
        // One that attaches may get packets just before it is noted here.
        let newest = terms.iter().rev().find(|term| term.since_ns <= time_ns);
        newest.or(terms.first()).map(|term| &term.is)
    }

    /// The NFs that are attached now.
    pub fn nfs(&self) -> impl Iterator<Item = &Arc<NfName>> {
        self.nfs.values().filter_map(|terms| current(terms))
    }

    /// The route that had a number at `time_ns`, nanoseconds of CLOCK_MONOTONIC.
    #[must_use]
    pub fn route(&self, route: RouteId, time_ns: u64) -> Option<&Arc<RouteName>> {
        let term = self.routes.get(&route)?.iter().rev().find(|term| term.since_ns <= time_ns)?;
        term.until_ns.is_none_or(|until_ns| time_ns <= until_ns).then_some(&term.is)
    }

    /// The chain and the hop of an event: name of the chain, and what is at the position.
    #[must_use]
    pub fn hop(&self, route: RouteId, hop: u8, time_ns: u64) -> Option<(&Arc<str>, &HopName)> {
        let route = self.route(route, time_ns)?;
        Some((&route.chain, route.hops.get(usize::from(hop))?))
    }

    /// The routes that are written now, and those that packets may still travel.
    pub fn routes(&self) -> impl Iterator<Item = (RouteId, &Arc<RouteName>)> {
        self.routes.iter().filter_map(|(&id, terms)| Some((id, current(terms)?)))
    }

    /// The service with a place among the workers' counters.
    #[must_use]
    pub fn service(&self, slot: u16) -> Option<&ServiceName> {
        self.services.get(usize::from(slot))
    }

    /// The services, by their place among the workers' counters.
    #[must_use]
    pub fn services(&self) -> &[ServiceName] {
        &self.services
    }

    /// The place of a service among the workers' counters.
    #[must_use]
    pub fn slot_named(&self, name: &str) -> Option<u16> {
        // A name that came back has another id and another place: the newest is meant.
        let at = self.services.iter().rposition(|service| *service.name == *name)?;
        u16::try_from(at).ok()
    }

    /// The name of a drop reason.
    #[must_use]
    pub fn reason(code: u8) -> Option<&'static str> {
        DropReason::ALL.get(usize::from(code)).map(|reason| reason.name())
    }

    /// The number of a drop reason.
    #[must_use]
    pub fn reason_named(name: &str) -> Option<u8> {
        DropReason::ALL.iter().find(|reason| reason.name() == name).map(|&reason| reason as u8)
    }

    /// The newest name of a service by its id.
    #[must_use]
    pub fn service_by_id(&self, id: ServiceId) -> Option<&ServiceName> {
        self.services.iter().rev().find(|service| service.service == id)
    }

    /// Where a drop is seen, as it is written: `drop:no_rule`.
    #[must_use]
    pub fn drop_place(code: u8) -> String {
        format!("drop:{}", Self::reason(code).unwrap_or("unknown"))
    }
}

fn current<T>(terms: &[Term<T>]) -> Option<&T> {
    terms.last().filter(|term| term.until_ns.is_none()).map(|term| &term.is)
}

/// Keeps a directory in step with what runs. The control thread has it.
#[derive(Debug, Default)]
pub struct DirectoryKeeper {
    directory: Directory,
    /// What routes were written, to know a new one under an old number.
    written: BTreeMap<RouteId, Arc<Route>>,
    /// By what a change is noticed without comparing everything.
    seen: Option<Revisions>,
}

/// Counts of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Revisions {
    planner: u64,
    registry: u64,
}

impl DirectoryKeeper {
    /// Looks what has changed; the new directory, if anything has. Costs two comparisons if not.
    pub fn update(
        &mut self,
        conductor: &Conductor,
        fabric: &Fabric,
        now_ns: u64,
    ) -> Option<Arc<Directory>> {
        let seen = Revisions {
            planner: conductor.planner().revision(),
            registry: conductor.registry().revision(),
        };
        if self.seen == Some(seen) {
            return None;
        }
        self.seen = Some(seen);
        if self.directory.ports.is_empty() {
            self.directory.ports =
                fabric.ports().iter().map(|port| Arc::from(port.name.as_str())).collect();
        }
        let model = conductor.model_to_be();
        self.update_services(model, &conductor.planner().services_by_slot());
        self.update_routes(model, conductor.planner().written(), now_ns);
        self.update_nfs(model, conductor, now_ns);
        self.directory.generation += 1;
        Some(Arc::new(self.directory.clone()))
    }

    fn update_services(&mut self, model: &Model, by_slot: &[ServiceId]) {
        let services = &mut self.directory.services;
        for (slot, &service) in by_slot.iter().enumerate() {
            let name = model.service(service).map(|service| Arc::from(service.name()));
            match (services.get_mut(slot), name) {
                (Some(known), Some(name)) => *known = ServiceName { service, name },
                (Some(_), None) => {}
                (None, name) => {
                    let name = name.unwrap_or_else(|| Arc::from(service.to_string()));
                    services.push(ServiceName { service, name });
                }
            }
        }
    }

    fn update_routes<'a>(
        &mut self,
        model: &Model,
        written: impl Iterator<Item = (&'a Arc<Route>, u64)>,
        now_ns: u64,
    ) {
        let before = std::mem::take(&mut self.written);
        for (route, written_ns) in written {
            let id = route.id;
            self.written.insert(id, Arc::clone(route));
            if before.get(&id).is_some_and(|known| Arc::ptr_eq(known, route)) {
                continue;
            }
            let terms = self.directory.routes.entry(id).or_default();
            end(terms, written_ns);
            begin(terms, written_ns, Arc::new(route_name(model, route)));
        }
        for (id, terms) in &mut self.directory.routes {
            if !self.written.contains_key(id) {
                end(terms, now_ns);
            }
        }
        forget(&mut self.directory.routes, now_ns);
    }

    fn update_nfs(&mut self, model: &Model, conductor: &Conductor, now_ns: u64) {
        let registry = conductor.registry();
        for record in registry.nfs() {
            let terms = self.directory.nfs.entry(record.nf).or_default();
            if current(terms).is_some_and(|known| known.instance == record.instance) {
                continue;
            }
            let service_name = model.service(record.service).map(|service| service.name());
            let name = NfName {
                nf: record.nf,
                instance: record.instance,
                service: record.service,
                service_name: service_name
                    .map_or_else(|| Arc::from(record.service.to_string()), Arc::from),
                slot: record.slot,
                isolated: record.isolated,
            };
            end(terms, now_ns);
            begin(terms, now_ns, Arc::new(name));
        }
        for (&nf, terms) in &mut self.directory.nfs {
            if registry.by_number(nf).is_none() {
                end(terms, now_ns);
            }
        }
        forget(&mut self.directory.nfs, now_ns);
    }
}

fn route_name(model: &Model, route: &Route) -> RouteName {
    let chain = model.chain(route.chain).map(|chain| Arc::from(chain.name()));
    let hop = |service: ServiceId| HopName {
        service,
        name: model
            .service(service)
            .map_or_else(|| Arc::from(service.to_string()), |service| Arc::from(service.name())),
    };
    RouteName {
        chain: chain.unwrap_or_else(|| Arc::from(route.chain.to_string())),
        hops: route.hops.iter().map(|planned| hop(planned.id)).collect(),
    }
}

fn begin<T: Clone>(terms: &mut Terms<T>, since_ns: u64, is: T) {
    let terms = Arc::make_mut(terms);
    if terms.len() == MAX_FORMER {
        terms.remove(0);
    }
    terms.push(Term { since_ns, until_ns: None, is });
}

fn end<T: Clone>(terms: &mut Terms<T>, at_ns: u64) {
    if current(terms).is_some()
        && let Some(last) = Arc::make_mut(terms).last_mut()
    {
        last.until_ns = Some(at_ns);
    }
}

/// Forgets what ended long ago.
fn forget<N: Ord, T: Clone>(by_number: &mut BTreeMap<N, Terms<T>>, now_ns: u64) {
    let is_kept = |term: &Term<T>| {
        term.until_ns.is_none_or(|until_ns| now_ns.saturating_sub(until_ns) < KEPT_NS)
    };
    by_number.retain(|_, terms| {
        if !terms.iter().all(is_kept) {
            Arc::make_mut(terms).retain(is_kept);
        }
        !terms.is_empty()
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ModelSpecs;
    use crate::plan::ChainShape;
    use crate::plan::builder::{Planner, Wanted};
    use nflib::control::{ChainSpec, ServiceRef, ServiceSpec};

    fn model(chain: &str, services: &[&str]) -> Model {
        let service = |name: &&str| ServiceSpec { name: (*name).to_owned(), ..Default::default() };
        let names = services.iter().map(|name| ServiceRef::Name((*name).to_owned())).collect();
        let chain = ChainSpec {
            name: chain.to_owned(),
            services: names,
            end: "egress".to_owned(),
            ..Default::default()
        };
        let specs = ModelSpecs {
            services: services.iter().map(service).collect(),
            chains: vec![chain],
            rules: Vec::new(),
        };
        Model::build(&specs, &["lan".to_owned()], None).unwrap().0
    }

    fn plan(planner: &mut Planner, model: &Model) {
        let chains: Vec<_> = model.chains().map(|chain| ChainShape::of(chain)).collect();
        let wanted = Wanted { chains: &chains, ..Wanted::default() };
        let plan = planner.prepare(&wanted).unwrap();
        planner.commit(plan);
    }

    #[test]
    fn a_number_that_is_used_again_tells_old_and_new_apart_by_time() {
        let mut keeper = DirectoryKeeper::default();
        let mut planner = Planner::new().unwrap();
        let mut update = |model: &Model, planner: &Planner, now_ns| {
            keeper.update_routes(model, planner.written(), now_ns);
            keeper.directory.clone()
        };
        let old = model("web", &["firewall"]);
        plan(&mut planner, &old);
        let (id, of_old_ns) = planner.written().map(|(route, ns)| (route.id, ns)).next().unwrap();
        update(&old, &planner, of_old_ns);
        // The chain goes, its last packet comes out, and another one gets its number, all unseen.
        plan(&mut planner, &Model::default());
        planner.retire();
        let new = model("voice", &["echo"]);
        plan(&mut planner, &new);
        let of_new_ns =
            planner.written().find(|(route, _)| route.id == id).map(|(_, ns)| ns).unwrap();
        assert!(of_new_ns > of_old_ns);
        let directory = update(&new, &planner, of_new_ns);
        let chain = |at_ns| directory.route(id, at_ns).map(|route| route.chain.to_string());
        assert_eq!(chain(of_old_ns).as_deref(), Some("web"));
        assert_eq!(chain(of_new_ns - 1).as_deref(), Some("web"));
        assert_eq!(chain(of_new_ns).as_deref(), Some("voice"));
        assert_eq!(chain(of_old_ns - 1), None);
        let (chain, hop) = directory.hop(id, 0, of_new_ns).unwrap();
        assert_eq!((&**chain, &*hop.name), ("voice", "echo"));
        assert_eq!(directory.hop(id, 1, of_new_ns), None);
    }

    #[test]
    fn a_route_that_ended_names_no_later_packet_and_is_forgotten_in_the_end() {
        let mut keeper = DirectoryKeeper::default();
        let mut planner = Planner::new().unwrap();
        let web = model("web", &["firewall"]);
        plan(&mut planner, &web);
        let (id, since_ns) = planner.written().map(|(route, ns)| (route.id, ns)).next().unwrap();
        keeper.update_routes(&web, planner.written(), since_ns);
        assert!(keeper.directory.route(id, since_ns + KEPT_NS).is_some());
        keeper.update_routes(&web, std::iter::empty(), since_ns + 10);
        assert!(keeper.directory.route(id, since_ns + 10).is_some());
        assert!(keeper.directory.route(id, since_ns + 11).is_none());
        assert_eq!(keeper.directory.routes().count(), 0);
        keeper.update_routes(&web, std::iter::empty(), since_ns + 10 + KEPT_NS);
        assert!(keeper.directory.route(id, since_ns + 10).is_none());
    }

    #[test]
    fn names_and_numbers_lead_to_each_other() {
        let service =
            |service, name: &str| ServiceName { service, name: Arc::from(name.to_owned()) };
        let nf = NfName {
            nf: 4,
            instance: 9,
            service: 1,
            service_name: Arc::from("firewall"),
            slot: 0,
            isolated: false,
        };
        let services = vec![service(1, "firewall"), service(2, "echo")];
        let directory = Directory::of(&["lan", "wan"], services, vec![nf], Vec::new());
        assert_eq!(directory.port_named("wan"), Some(1));
        assert_eq!(directory.port(1).map(|name| &**name), Some("wan"));
        assert_eq!(directory.port_named("dmz"), None);
        assert_eq!(directory.slot_named("echo"), Some(1));
        assert_eq!(directory.nf(4, 0).unwrap().place(), "nf:firewall#9");
        assert_eq!(directory.nf(NOBODY, 0), None);
        let no_rule = Directory::reason_named("no_rule").unwrap();
        assert_eq!(Directory::drop_place(no_rule), "drop:no_rule");
        assert_eq!(Directory::drop_place(255), "drop:unknown");
        assert_eq!(directory.service_by_id(2).map(|service| &*service.name), Some("echo"));
        for &reason in DropReason::ALL {
            assert_eq!(Directory::reason_named(reason.name()), Some(reason as u8));
        }
    }
}
