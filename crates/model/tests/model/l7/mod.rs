//! L7 routing: tables of what the Gateway API says, and random routes against a naive reading of it.

mod cors;
mod duration;
mod faults;
mod filters;
mod make;
mod policies;
mod retries;
mod routes_oracle;
mod routes_table;
mod sessions;
mod text;
