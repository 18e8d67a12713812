//! What is known of routes and policies, and the compiled form that requests are held against.
//!
//! A change makes anew what it concerns and shares the rest with the version before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use foldhash::HashMap;
use model::Str;
use model::identity::Identity;
use model::l7::{
    BackendTls, Balancing, Fault, Place, Policy, PolicyTarget, RetryBudget, RetryLedger, RouteKind, Routes,
    Rule, RuleKey, Settings,
};
use model::service::ServiceName;

use super::secured::{Secure, Secured};

/// Something that discovery has said.
#[derive(Debug)]
pub(crate) enum Change {
    /// The TLS towards a service's endpoints.
    BackendTls(BackendTls),
    /// The TLS towards a service's endpoints can't be understood, for this reason: nothing is to be sent in plaintext instead.
    BackendTlsRefused(ServiceName, Str),
    /// No TLS is wanted any more.
    BackendTlsRemoved(ServiceName),
    /// A policy, by the name of its resource.
    Policy(String, Box<Policy>),
    /// The policy of this name is gone.
    PolicyRemoved(String),
    /// The rule as it is now can't be understood, for this reason: what it matched must not fall through to another.
    Refused(RuleKey, Str),
    /// The rule is gone.
    Removed(RuleKey),
    /// A rule.
    Rule(Box<Rule>),
}

/// All that is known, held by the one who changes it.
#[derive(Debug)]
pub(crate) struct Rules {
    /// The Gateway that this waypoint was made for: namespace and name.
    gateway: (Str, Str),
    rules: HashMap<RuleKey, Arc<Rule>>,
    policies: BTreeMap<String, Policy>,
    /// Which rules are about a service.
    about: HashMap<ServiceName, BTreeSet<RuleKey>>,
    book: Book,
}

/// What requests are held against, as of one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Book {
    services: HashMap<ServiceName, Arc<OfService>>,
    others: Arc<OfService>,
    secured: Secured,
}

/// The rules of one service, and the settings of each.
#[derive(Debug)]
pub(crate) struct OfService {
    ports: Arc<Ports>,
    settings: HashMap<RuleKey, Chosen>,
    implicit: Chosen,
    ledger: Arc<RetryLedger>,
}

/// The rules of one service by port.
#[derive(Debug, Default)]
struct Ports {
    /// The ports that a rule names.
    named: HashMap<u16, Routes>,
    others: Routes,
}

/// What policies say about a place.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chosen {
    pub(crate) fault: Option<Fault>,
    pub(crate) balancing: Option<Balancing>,
}

/// What a batch of changes concerns.
#[derive(Debug, Default)]
struct Touched {
    /// Services, and whether their rules have changed, not only settings.
    services: HashMap<ServiceName, bool>,
    /// The settings of all.
    settings: bool,
}

impl Default for OfService {
    fn default() -> Self {
        Self {
            ports: Arc::default(),
            settings: HashMap::default(),
            implicit: Chosen::default(),
            ledger: Arc::new(RetryLedger::new(RetryBudget::default())),
        }
    }
}

impl Book {
    /// What is known of a service.
    pub(crate) fn of(&self, service: &ServiceName) -> &Arc<OfService> {
        self.services.get(service).unwrap_or(&self.others)
    }

    /// The TLS that is begun with endpoints of a port of a service; `None` where none is wanted.
    ///
    /// # Errors
    /// When it is wanted and can't be begun, for that reason.
    pub(crate) fn secured(&self, service: &ServiceName, port: u16) -> Result<Option<&Arc<Secure>>, &Str> {
        self.secured.of(service, port)
    }

    /// The services that a rule or a policy speaks of.
    #[cfg(test)]
    pub(crate) fn services(&self) -> Vec<&ServiceName> {
        self.services.keys().collect()
    }
}

impl OfService {
    /// The rules of a port.
    pub(crate) fn routes(&self, port: u16) -> &Routes {
        self.ports.named.get(&port).unwrap_or(&self.ports.others)
    }

    /// Whether an HTTPRoute or a GRPCRoute names this very port and decides for this client: its author says that HTTP is spoken
    /// there.
    pub(crate) fn is_http(&self, port: u16, client: Option<&Identity>) -> bool {
        let named = self.ports.named.get(&port);
        named.is_some_and(|routes| matches!(routes.kind(client), Some(RouteKind::Grpc | RouteKind::Http)))
    }

    /// What policies say about a rule, or about requests that no route is about.
    pub(crate) fn chosen(&self, rule: Option<&RuleKey>) -> &Chosen {
        rule.and_then(|key| self.settings.get(key)).unwrap_or(&self.implicit)
    }

    /// What was spent on retries.
    pub(crate) fn ledger(&self) -> &Arc<RetryLedger> {
        &self.ledger
    }
}

impl Rules {
    /// Nothing yet, for the waypoint of this Gateway.
    pub(crate) fn new(gateway: (Str, Str)) -> Self {
        Self {
            gateway,
            rules: HashMap::default(),
            policies: BTreeMap::new(),
            about: HashMap::default(),
            book: Book::default(),
        }
    }

    /// Applies a batch; what requests are held against from now on.
    pub(crate) fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> Book {
        let mut touched = Touched::default();
        for change in changes {
            match change {
                Change::BackendTls(tls) => self.book.secured.put(tls),
                Change::BackendTlsRefused(service, why) => self.book.secured.refuse(service, why),
                Change::BackendTlsRemoved(service) => self.book.secured.remove(&service),
                Change::Policy(name, policy) => {
                    self.touch(&policy.target, &mut touched);
                    if let Some(old) = self.policies.insert(name, *policy) {
                        self.touch(&old.target, &mut touched);
                    }
                }
                Change::PolicyRemoved(name) => {
                    if let Some(old) = self.policies.remove(&name) {
                        self.touch(&old.target, &mut touched);
                    }
                }
                Change::Refused(key, why) => {
                    if let Some(old) = self.rules.get(&key) {
                        let refused = Rule { refusal: Some(why), ..(**old).clone() };
                        self.put(refused, &mut touched);
                    }
                }
                Change::Removed(key) => self.take(&key, &mut touched),
                Change::Rule(rule) => self.put(*rule, &mut touched),
            }
        }
        self.compile(&touched);
        self.book.clone()
    }

    fn put(&mut self, rule: Rule, touched: &mut Touched) {
        self.take(&rule.key, touched);
        for parent in &rule.parents {
            touched.services.insert(parent.service.clone(), true);
            self.about.entry(parent.service.clone()).or_default().insert(rule.key.clone());
        }
        self.rules.insert(rule.key.clone(), Arc::new(rule));
    }

    fn take(&mut self, key: &RuleKey, touched: &mut Touched) {
        let old = self.rules.remove(key);
        for parent in old.iter().flat_map(|old| &old.parents) {
            touched.services.insert(parent.service.clone(), true);
            if let Some(keys) = self.about.get_mut(&parent.service) {
                keys.remove(key);
                if keys.is_empty() {
                    self.about.remove(&parent.service);
                }
            }
        }
    }

    /// Notes the services whose settings a policy may change.
    fn touch(&self, target: &PolicyTarget, touched: &mut Touched) {
        let mut parents = |rule: &Rule| {
            for parent in &rule.parents {
                touched.services.entry(parent.service.clone()).or_default();
            }
        };
        match target {
            PolicyTarget::Rule(key) => self.rules.get(key).map(|rule| &**rule).into_iter().for_each(parents),
            PolicyTarget::Route { kind, namespace, name } => {
                let of =
                    |key: &RuleKey| key.kind == *kind && key.namespace == *namespace && key.name == *name;
                self.rules.values().filter(|rule| of(&rule.key)).for_each(|rule| parents(rule));
            }
            PolicyTarget::Service(service) => {
                touched.services.entry(service.clone()).or_default();
            }
            PolicyTarget::Waypoint { .. } => touched.settings = true,
        }
    }

    fn compile(&mut self, touched: &Touched) {
        let mut concerned: BTreeMap<ServiceName, bool> =
            touched.services.iter().map(|(service, rules)| (service.clone(), *rules)).collect();
        if touched.settings {
            let all = self.book.services.keys();
            all.for_each(|service| {
                concerned.entry(service.clone()).or_default();
            });
            // No service is called so: what is left are the policies of the whole waypoint.
            let nobody = ServiceName { namespace: "".into(), hostname: "".into() };
            let implicit = self.settings(&nobody, None);
            self.book.others = Arc::new(OfService { implicit, ..OfService::default() });
        }
        for (service, changed) in concerned {
            let targeted =
                |policy: &Policy| matches!(&policy.target, PolicyTarget::Service(s) if *s == service);
            if self.about.contains_key(&service) || self.policies.values().any(targeted) {
                let made = Arc::new(self.of_service(&service, changed));
                self.book.services.insert(service, made);
            } else {
                self.book.services.remove(&service);
            }
        }
    }

    fn of_service(&self, service: &ServiceName, changed: bool) -> OfService {
        let before = self.book.services.get(service);
        let keys = || self.about.get(service).into_iter().flatten();
        let ports = match before {
            Some(before) if !changed => Arc::clone(&before.ports),
            _ => Arc::new(self.ports(service)),
        };
        OfService {
            ports,
            settings: keys().map(|key| (key.clone(), self.settings(service, Some(key)))).collect(),
            implicit: self.settings(service, None),
            ledger: before.map_or_else(|| OfService::default().ledger, |before| Arc::clone(&before.ledger)),
        }
    }

    fn ports(&self, service: &ServiceName) -> Ports {
        let keys = self.about.get(service).into_iter().flatten();
        let rules: Vec<_> = keys.filter_map(|key| self.rules.get(key)).collect();
        let parents = rules.iter().flat_map(|rule| &rule.parents);
        let named: BTreeSet<u16> =
            parents.filter(|parent| parent.service == *service).filter_map(|parent| parent.port).collect();
        let of = |port| Routes::of(service, port, rules.iter().copied());
        // No service has port 0, so no parent names it.
        Ports { named: named.into_iter().map(|port| (port, of(port))).collect(), others: of(0) }
    }

    fn settings(&self, service: &ServiceName, rule: Option<&RuleKey>) -> Chosen {
        let (namespace, name) = &self.gateway;
        let place = Place { waypoint: (namespace, name), service, rule };
        let Settings { fault, balancing } = Settings::at(place, self.policies.values());
        Chosen {
            fault: fault.map(|(_, fault)| fault.clone()),
            balancing: balancing.map(|(_, balancing)| balancing.clone()),
        }
    }
}
