//! The model judged from outside: tables through one `check` each, and random worlds against naive oracles.

mod inbound;
mod l7;
mod make;
mod policy_oracle;
mod policy_table;
mod route_oracle;
mod route_table;
mod store_oracle;
mod store_table;
mod waypoint_table;
mod world;
