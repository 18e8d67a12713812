//! DNS for enrolled pods: what is answered. How packets come and go is the data plane's.

pub(crate) mod answer;
