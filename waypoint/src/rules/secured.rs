//! The TLS that is begun towards endpoints, ready to be used: made once per change, and kept where nothing has changed.
//!
//! Where TLS is asked for and can't be begun there is a reason instead, and nothing is sent.

use std::sync::Arc;

use foldhash::HashMap;
use identity::SystemClock;
use identity::origination::Originator;
use model::Str;
use model::l7::{BackendTls, PortTls, ServerTls};
use model::service::ServiceName;

/// TLS for ports of a service that are alike.
#[derive(Debug)]
pub(crate) struct Secure {
    /// Begins it.
    pub(crate) originator: Originator,
    /// From 1, and no other has it: connections of another version are not used for requests that want this one.
    pub(crate) version: u64,
    says: ServerTls,
}

/// What holds for a port: TLS, or why there is none to be had.
type OfPort = Result<Arc<Secure>, Str>;

/// What holds for one service.
#[derive(Clone, Debug)]
enum OfService {
    /// What was said of it can't be understood, for this reason, so it holds for every port.
    Refused(Str),
    Ports(HashMap<u16, OfPort>),
}

/// What holds for each service. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Secured {
    services: Arc<HashMap<ServiceName, Arc<OfService>>>,
    /// How many versions there were.
    versions: u64,
}

impl Secured {
    /// The TLS that is begun with endpoints of a port of a service; `None` where none is wanted.
    ///
    /// # Errors
    /// When it is wanted and can't be begun, for that reason.
    pub(crate) fn of(&self, service: &ServiceName, port: u16) -> Result<Option<&Arc<Secure>>, &Str> {
        match self.services.get(service).map(|of| &**of) {
            None => Ok(None),
            Some(OfService::Refused(why)) => Err(why),
            Some(OfService::Ports(ports)) => ports.get(&port).map(|of| of.as_ref()).transpose(),
        }
    }

    /// From now on this holds.
    pub(super) fn put(&mut self, BackendTls { service, ports }: BackendTls) {
        let mut known: Vec<Arc<Secure>> = match self.services.get(&service).map(|of| &**of) {
            Some(OfService::Ports(ports)) => ports.values().flatten().cloned().collect(),
            Some(OfService::Refused(_)) | None => Vec::new(),
        };
        let mut secure = |says: ServerTls| -> OfPort {
            if let Some(same) = known.iter().find(|it| it.says == says) {
                return Ok(Arc::clone(same));
            }
            let originator = Originator::new(&says, Arc::new(SystemClock)).map_err(|why| why.to_string())?;
            self.versions += 1;
            let made = Arc::new(Secure { originator, version: self.versions, says });
            known.push(Arc::clone(&made));
            Ok(made)
        };
        let ports = ports.into_iter().map(|(port, tls)| {
            let of = match tls {
                PortTls::Invalid(why) => Err(why),
                PortTls::Tls(says) => secure(says),
            };
            (port, of)
        });
        let ports = OfService::Ports(ports.collect());
        Arc::make_mut(&mut self.services).insert(service, Arc::new(ports));
    }

    /// What is wanted for the service can't be understood: nothing is sent to it.
    pub(super) fn refuse(&mut self, service: ServiceName, why: Str) {
        Arc::make_mut(&mut self.services).insert(service, Arc::new(OfService::Refused(why)));
    }

    /// Nothing is wanted any more.
    pub(super) fn remove(&mut self, service: &ServiceName) {
        Arc::make_mut(&mut self.services).remove(service);
    }
}
