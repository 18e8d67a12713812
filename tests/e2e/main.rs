//! The whole mesh: controller, ztunnels, real eBPF and TLS between network namespaces, ordinary programs as applications.
//!
//! Needs root and fails without. Every test has a lab of its own, so that they run side by side.

mod bypass;
mod cni;
mod control_plane;
mod dns;
mod enrolment;
mod faults;
mod first_light;
mod hostile;
mod load;
mod mesh;
mod policy;
mod probes;
mod support;
mod traffic;
mod uninstall;
mod waypoint;
mod waypoint_h2;
mod waypoint_tcp;
mod waypoint_tls;
