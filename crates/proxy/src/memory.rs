//! The allocator, and giving back to the kernel what is free: a proxy is sized by what it holds, not by what it once
//! held. Bounds nothing; limits do that where memory is taken.

use std::time::Duration;

/// A connection allocates a few dozen small things on one thread and frees them there, which is what this one is best at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How often free memory is given back. Below a second it would be taken again at once; what a burst has left is gone before a
/// dashboard or an eviction looks twice.
const GIVE_BACK_EVERY: Duration = Duration::from_secs(10);

/// Runs before the allocator's own beginning (its constructor has no priority), which takes two huge pages otherwise: with them
/// a few used bytes hold two MiB each, a third more in all on an idle node.
#[used]
#[expect(unsafe_code, reason = "nothing of ours runs early enough otherwise")]
// SAFETY: the section holds pointers to functions of this type, which the C library calls once before `main`; this one makes a
// system call and touches nothing else.
#[unsafe(link_section = ".init_array.00101")]
static BEFORE_ALL: extern "C" fn() = refuse_huge_pages;

extern "C" fn refuse_huge_pages() {
    // Nobody can be told yet: see `refuses_huge_pages`.
    let _ = nix::sys::prctl::set_thp_disable(true);
}

/// Whether this process goes without huge pages.
pub(crate) fn refuses_huge_pages() -> bool {
    nix::sys::prctl::get_thp_disable() == Ok(true)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_no_huge_pages_from_the_beginning() {
        assert!(refuses_huge_pages());
        let mapped = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
        let huge = mapped.lines().find(|line| line.starts_with("AnonHugePages:")).unwrap();
        assert_eq!(huge.split_whitespace().nth(1), Some("0"), "{huge}");
    }
}
