//! L7 routing: tables of what the Gateway API says, and random routes against a naive reading of it.

mod duration;
mod text;
