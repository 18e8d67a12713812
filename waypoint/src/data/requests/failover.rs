//! Failover: where else a rule can send a request when the backend that was drawn has no endpoint left to try: its other backends.
//!
//! Chooses among backends, by their weights; among endpoints others do.

use std::sync::Arc;

use model::l7::{self, Backend, BackendTarget};
use model::service::Service;

use super::exchange::OneRequest;
use crate::data::upstream::choice;
use crate::data::upstream::pool::Carrier;

impl<U: Carrier> OneRequest<U> {
    /// Turns to another backend, if the rule retries and has one with an endpoint that was not tried. The request's edits were
    /// made for the backend that was drawn, so one with other filters won't do.
    pub(super) fn turn(&mut self) -> bool {
        let Some(rule) = self.rule.clone().filter(|rule| rule.retry.is_some()) else { return false };
        let Some((name, port)) = self.way.to.clone() else { return false };
        let drawn = BackendTarget::Service { name, port };
        let Some(own) = rule.backends.iter().find(|backend| backend.target == drawn) else { return false };
        let alike =
            rule.backends.iter().filter(|other| other.target != drawn && other.filters == own.filters);
        let others: Vec<_> = alike.filter(|other| self.untried(other).is_some()).collect();
        let chosen = l7::drawn(others.into_iter(), fastrand::u64(..));
        let Some((service, port)) = chosen.and_then(|chosen| self.untried(chosen)) else { return false };
        tracing::debug!(backend = %service.id, "trying another backend of the rule");
        self.way.to = Some((service.id.clone(), port));
        self.aim_at(service, port);
        true
    }

    /// The port of a service that a backend is, if that has an endpoint that was not tried.
    fn untried(&self, backend: &Backend) -> Option<(Arc<Service>, u16)> {
        let BackendTarget::Service { name, port } = &backend.target else { return None };
        let service = self.context.shared.mesh.snapshot().service_named(name).cloned()?;
        let set = choice::endpoints(&self.context, &self.asked.local, &service, (*port, None)).ok()?;
        let untried = set.iter().any(|one| !self.tried.contains(&one.target.workload.uid));
        untried.then_some((service, *port))
    }
}
