//! Services: their ids, and what may be asked of their instances.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use nflib::control::{ChainSpec, ChangeOf, Confine, OnStuck, ServiceRef, ServiceSpec};
use nflib::descriptor::ServiceId;
use nflib::shm::MAX_RECORDED_PKTS;

use super::error::{ModelError, check_name, shown, there_are};

/// Highest service id; 0 and 65535 name none.
pub const MAX_SERVICE_ID: ServiceId = 65_534;
/// Most services.
pub const MAX_SERVICES: usize = MAX_SERVICE_ID as usize;
/// Most instances of a service that the manager starts.
pub const MAX_INSTANCES: u32 = 1000;

/// Longest time without progress after which an NF may be said to be stuck, milliseconds.
pub const MAX_STUCK_AFTER_MS: u64 = 3_600_000;

/// Highest weight among NFs that share a core.
pub const MAX_WEIGHT: u32 = 100;

/// A service: a kind of NF.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Its id; stays while a service of this name is wanted.
    pub id: ServiceId,
    /// What was written; its `id` is the one above.
    pub spec: ServiceSpec,
}

impl Service {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Instances the manager keeps running; `None` when NFs of this service are started by hand.
    #[must_use]
    pub fn wanted_instances(&self) -> Option<u32> {
        self.spec.command.as_ref().map(|_| self.spec.instances)
    }

    /// Keys that say something although there is no command for them to be about.
    pub(super) fn keys_without_command(&self) -> Vec<&'static str> {
        let ServiceSpec { command, instances, user, weight, confine, writable, .. } = &self.spec;
        let keys = [
            ("instances", *instances != 1),
            ("user", user.is_some()),
            ("weight", weight.is_some()),
            ("confine", *confine != Confine::Default),
            ("writable", !writable.is_empty()),
        ];
        let said = keys.into_iter().filter(|(_, said)| *said && command.is_none());
        said.map(|(key, _)| key).collect()
    }
}

/// All services.
#[derive(Clone, Debug, Default)]
pub(super) struct Services {
    /// They were declared; else they are those that chains name.
    pub declared: bool,
    pub by_id: BTreeMap<ServiceId, Arc<Service>>,
    by_name: HashMap<String, ServiceId>,
}

impl Services {
    /// Gives services their ids and checks what is asked of them.
    ///
    /// `specs` empty: those that `chains` name. A name that `previous` knows keeps its id; ids of
    /// services that go are given to others only when no other is left.
    pub fn resolve(
        specs: &[ServiceSpec],
        chains: &[ChainSpec],
        previous: Option<&Self>,
    ) -> Result<Self, ModelError> {
        if specs.is_empty() {
            return Self::implied(chains, previous);
        }
        let mut ids = Ids::new(previous);
        let mut names = HashSet::new();
        if specs.len() > MAX_SERVICES {
            return Err(too_many(specs.len()));
        }
        for (at, spec) in specs.iter().enumerate() {
            let fail = |error: ModelError| error.at(ChangeOf::Service, at);
            check_service_name(spec).map_err(fail)?;
            if !names.insert(spec.name.as_str()) {
                let name = &spec.name;
                return Err(fail(ModelError::invalid(format!(
                    "two services are named {name:?}: names must differ"
                ))));
            }
            ids.claim(spec).map_err(fail)?;
        }
        let mut machine = Machine::default();
        let mut services = Self { declared: true, ..Self::default() };
        for (at, spec) in specs.iter().enumerate() {
            let id = ids.of(&spec.name).ok_or_else(|| too_many(specs.len()))?;
            let before = previous.and_then(|p| p.named(&spec.name));
            let spec = ServiceSpec { id: Some(id), ..spec.clone() };
            let service = match before {
                Some(before) if before.id == id && before.spec == spec => Arc::clone(before),
                _ => {
                    machine.check(&spec).map_err(|error| error.at(ChangeOf::Service, at))?;
                    Arc::new(Service { id, spec })
                }
            };
            services.add(service);
        }
        Ok(services)
    }

    /// The services that chains name: number n is service n, named "n"; a name gets a free id.
    fn implied(chains: &[ChainSpec], previous: Option<&Self>) -> Result<Self, ModelError> {
        let mut ids = Ids::new(previous);
        let mut seen = HashSet::new();
        let mut specs = Vec::new();
        for (at, chain) in chains.iter().enumerate() {
            for spec in chain.services.iter().map(implied_spec) {
                check_service_name(&spec).map_err(|error| error.at(ChangeOf::Chain, at))?;
                if seen.insert(spec.name.clone()) {
                    specs.push(spec);
                }
            }
        }
        // Names that have an id keep it, also against a number: the number then means that service.
        let (numbers, words): (Vec<_>, Vec<_>) = specs.iter().partition(|spec| spec.id.is_some());
        for spec in words {
            ids.claim(spec)?;
        }
        for spec in numbers {
            if spec.id.is_some_and(|id| ids.owner(id).is_none()) {
                ids.claim(spec)?;
            }
        }
        let mut services = Self::default();
        for spec in specs {
            if spec.id.is_some_and(|id| ids.owner(id) != Some(&spec.name)) {
                continue;
            }
            let id = ids.of(&spec.name).ok_or_else(|| too_many(MAX_SERVICES + 1))?;
            services.add(Arc::new(Service { id, spec: ServiceSpec { id: Some(id), ..spec } }));
        }
        Ok(services)
    }

    /// Services of which nothing is known but their ids, for others to take them over.
    pub fn of_ids(ids: &BTreeMap<String, ServiceId>) -> Self {
        let mut services = Self { declared: true, ..Self::default() };
        for (name, &id) in ids {
            let spec = ServiceSpec { name: name.clone(), ..ServiceSpec::default() };
            services.add(Arc::new(Service { id, spec }));
        }
        services
    }

    fn add(&mut self, service: Arc<Service>) {
        self.by_name.insert(service.spec.name.clone(), service.id);
        self.by_id.insert(service.id, service);
    }

    pub fn named(&self, name: &str) -> Option<&Arc<Service>> {
        self.by_id.get(self.by_name.get(name)?)
    }

    /// The service that a chain or a command means.
    pub fn find(&self, service: &ServiceRef) -> Result<&Arc<Service>, ModelError> {
        let found = match service {
            ServiceRef::Id(id) => self.by_id.get(id),
            ServiceRef::Name(name) => self.named(name).or_else(|| match number(name) {
                Some(id) => self.by_id.get(&id),
                None => None,
            }),
        };
        found.ok_or_else(|| {
            let which = match service {
                ServiceRef::Id(id) => format!("with id {id}"),
                ServiceRef::Name(name) => shown(name),
            };
            let names = self.by_id.values().map(|service| service.name());
            let known = there_are(names, "none is declared");
            ModelError::not_found(format!("there is no service {which}; {known}"))
        })
    }

    /// Specs as they would have to be written for this state; none if none was written.
    pub fn specs(&self) -> Vec<ServiceSpec> {
        if !self.declared {
            return Vec::new();
        }
        self.by_id.values().map(|service| service.spec.clone()).collect()
    }
}

fn too_many(count: usize) -> ModelError {
    ModelError::invalid(format!("{count} services, at most {MAX_SERVICES} are possible"))
}

/// A name of digits only is a number.
fn number(name: &str) -> Option<ServiceId> {
    name.bytes().all(|byte| byte.is_ascii_digit()).then(|| name.parse().ok())?
}

fn implied_spec(service: &ServiceRef) -> ServiceSpec {
    let (id, name) = match service {
        ServiceRef::Id(id) => (Some(*id), id.to_string()),
        ServiceRef::Name(name) => match number(name) {
            Some(id) => (Some(id), id.to_string()),
            None => (None, name.clone()),
        },
    };
    ServiceSpec { name, id, instances: 1, ..ServiceSpec::default() }
}

fn check_service_name(spec: &ServiceSpec) -> Result<(), ModelError> {
    let name = &spec.name;
    check_name("service", name)?;
    if spec.id.is_some_and(|id| !(1..=MAX_SERVICE_ID).contains(&id)) {
        let id = spec.id.unwrap_or_default();
        return Err(ModelError::invalid(format!(
            "service {name:?}: id {id} is none: expected 1 to {MAX_SERVICE_ID}"
        )));
    }
    // Or "7" would be one service in a chain and another one on the command line.
    if name.bytes().all(|byte| byte.is_ascii_digit()) && spec.id != number(name) {
        return Err(ModelError::invalid(format!(
            "service {name:?}: a name of digits must be the service's own id; choose a word"
        )));
    }
    Ok(())
}

/// Who has which id, while they are given out.
struct Ids<'a> {
    previous: Option<&'a Services>,
    by_id: HashMap<ServiceId, String>,
    by_name: HashMap<String, ServiceId>,
    /// No id below is free.
    next: u32,
}

impl<'a> Ids<'a> {
    fn new(previous: Option<&'a Services>) -> Self {
        Self { previous, by_id: HashMap::new(), by_name: HashMap::new(), next: 1 }
    }

    /// The id that a service of this name has already.
    fn kept(&self, name: &str) -> Option<ServiceId> {
        self.previous?.named(name).map(|service| service.id)
    }

    fn owner(&self, id: ServiceId) -> Option<&String> {
        self.by_id.get(&id)
    }

    /// Notes the id that a service has or asks for.
    fn claim(&mut self, spec: &ServiceSpec) -> Result<(), ModelError> {
        let name = &spec.name;
        let id = match (spec.id, self.kept(name)) {
            (Some(id), Some(kept)) if id != kept => {
                return Err(ModelError::invalid(format!(
                    "service {name:?} has id {kept} and keeps it while it is wanted: write id = \
                     {kept}, or give the service of id {id} another name"
                )));
            }
            (Some(id), _) | (None, Some(id)) => id,
            (None, None) => return Ok(()),
        };
        if let Some(other) = self.by_id.insert(id, name.clone()) {
            return Err(ModelError::invalid(format!(
                "services {other:?} and {name:?} have the same id {id}: ids must differ"
            )));
        }
        self.by_name.insert(name.clone(), id);
        Ok(())
    }

    /// The id of a service: what it claimed, else the lowest that neither another service nor one
    /// that goes has, else the lowest that is free.
    fn of(&mut self, name: &str) -> Option<ServiceId> {
        if let Some(id) = self.by_name.get(name) {
            return Some(*id);
        }
        let free = |id: &ServiceId| !self.by_id.contains_key(id);
        let fresh = |id: &ServiceId| self.previous.is_none_or(|p| !p.by_id.contains_key(id));
        let from = ServiceId::try_from(self.next).unwrap_or(ServiceId::MAX);
        let id = (from..=MAX_SERVICE_ID)
            .find(|id| free(id) && fresh(id))
            .or_else(|| (1..=MAX_SERVICE_ID).find(free))?;
        self.next = u32::from(id) + 1;
        self.by_id.insert(id, name.to_owned());
        self.by_name.insert(name.to_owned(), id);
        Some(id)
    }
}

/// What the machine we run on has, asked once each.
#[derive(Default)]
struct Machine {
    users: HashSet<String>,
}

impl Machine {
    /// Checks what a service asks of its instances.
    fn check(&mut self, spec: &ServiceSpec) -> Result<(), ModelError> {
        let name = &spec.name;
        let fail =
            |message: String| Err(ModelError::invalid(format!("service {name:?}: {message}")));
        check_instances(spec, spec.instances)?;
        if spec.command.as_ref().is_some_and(|words| words.first().is_none_or(String::is_empty)) {
            return fail("command is empty: expected [\"program\", \"argument\", …]".into());
        }
        let machine = crate::machine::Machine::this();
        if let Err(why) = spec.cores.iter().try_for_each(|core| machine.check(*core)) {
            return fail(format!("cores: {why}"));
        }
        if spec.own_core && !spec.cores.is_empty() {
            return fail("own_core lets the manager choose: leave out cores, or own_core".into());
        }
        if spec.weight.is_some_and(|weight| !(1..=MAX_WEIGHT).contains(&weight)) {
            return fail(format!("weight: expected 1 to {MAX_WEIGHT}"));
        }
        if spec.on_stuck == OnStuck::Restart && spec.command.is_none() {
            return fail(
                "on_stuck = \"restart\" is for NFs that the manager starts: add a command, or use \
                 report or kill"
                    .into(),
            );
        }
        if spec.stuck_after_ms.is_some_and(|ms| !(1..=MAX_STUCK_AFTER_MS).contains(&ms)) {
            return fail(format!("stuck_after_ms: expected 1 to {MAX_STUCK_AFTER_MS}"));
        }
        if spec.recorder_pkts.is_some_and(|pkts| pkts > MAX_RECORDED_PKTS) {
            return fail(format!("recorder_pkts: expected 0 to {MAX_RECORDED_PKTS}"));
        }
        if spec.recorder_all && spec.recorder_pkts == Some(0) {
            return fail("recorder_all is of no use with recorder_pkts = 0: leave out one".into());
        }
        if spec.packet_limit.is_some_and(|limit| limit == 0 || limit > i64::MAX as u64) {
            return fail(format!("packet_limit: expected 1 to {}", i64::MAX));
        }
        if let Some(limit) = spec.time_limit_s
            && !(limit > 0.0 && limit <= super::MAX_SECONDS)
        {
            let most = super::MAX_SECONDS;
            return fail(format!("time_limit_s is {limit}: expected more than 0, at most {most}"));
        }
        if let Some(path) = spec.writable.iter().find(|path| !path.starts_with('/')) {
            return fail(format!(
                "writable: {path:?} does not begin with /: expected a whole path"
            ));
        }
        if spec.confine == Confine::Off && !spec.writable.is_empty() {
            return fail(
                "confine is off, so all is writable: leave out writable, or confine".into(),
            );
        }
        if spec.shared_region && !spec.isolated {
            return fail("shared_region is for isolated = true: others share it anyway".into());
        }
        let by_hand = spec.command.is_none();
        if spec.access.is_read_only()
            && spec.confine == Confine::Off
            && spec.user.is_none()
            && !by_hand
        {
            return fail(
                "access is read-only, which NFs of the manager's own user could undo: give them \
                 another user, or leave out confine"
                    .into(),
            );
        }
        match &spec.user {
            Some(user) if !self.has_user(user) => fail(format!(
                "this machine has no user {}; expected a name or a number",
                shown(user)
            )),
            _ => Ok(()),
        }
    }

    fn has_user(&mut self, user: &str) -> bool {
        use nix::unistd::{Uid, User};
        if self.users.contains(user) {
            return true;
        }
        let found = match user.parse() {
            Ok(uid) => User::from_uid(Uid::from_raw(uid)),
            // getpwnam takes a C string.
            Err(_) if user.contains('\0') => Ok(None),
            Err(_) => User::from_name(user),
        };
        let found = matches!(found, Ok(Some(_)));
        if found {
            self.users.insert(user.to_owned());
        }
        found
    }
}

/// Checks how many instances are asked for.
pub(super) fn check_instances(spec: &ServiceSpec, instances: u32) -> Result<(), ModelError> {
    if instances > MAX_INSTANCES {
        return Err(ModelError::invalid(format!(
            "service {:?}: {instances} instances, at most {MAX_INSTANCES} are possible",
            spec.name
        )));
    }
    Ok(())
}
