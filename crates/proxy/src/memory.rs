//! The allocator, and giving back to the kernel what is free: a proxy is sized by what it holds, not by what it once
//! held. Bounds nothing; limits do that where memory is taken.

use std::time::Duration;

/// A connection allocates a few dozen small things on one thread and frees them there, which is what this one is best at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How often free memory is given back. Below a second it would be taken again at once; what a burst has left is gone before a
/// dashboard or an eviction looks twice.
const GIVE_BACK_EVERY: Duration = Duration::from_secs(10);

/// To be called before there are threads: with huge pages a few used bytes hold two MiB each, a third more in all on an idle
/// node.
pub(crate) fn refuse_huge_pages() -> nix::Result<()> {
    nix::sys::prctl::set_thp_disable(true)
}

/// Gives free memory back, forever. In a node's proxy the kernel's type information alone, which is parsed whenever a program is
/// loaded, leaves some 40 MiB behind.
pub(crate) async fn give_back_forever() {
    let mut ticks = tokio::time::interval(GIVE_BACK_EVERY);
    loop {
        ticks.tick().await;
        give_back();
    }
}

#[expect(unsafe_code, reason = "the allocator's own interface")]
fn give_back() {
    // SAFETY: may be called at any time from any thread; it touches only memory that nobody holds.
    unsafe { libmimalloc_sys::mi_collect(true) }
}
