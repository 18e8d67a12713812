//! The controller from outside: manifests in, mesh out; and its servers with real clients.

mod automatic;
mod backend_tls;
mod definitions;
mod directory;
mod enrolment;
mod entries;
mod guarding;
mod index_property;
mod judgements;
mod marks;
mod policies;
mod routes;
mod serve;
mod services;
mod support;
mod traffic;
mod waypoints;
mod workloads;
mod yaml;
