/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The maps and small helpers that both objects share. Every number comes from src/layout.rs through build.rs.
 * Maps are pinned by name below the node's pins directory, so that both objects and the loader use the same ones.
 */
#ifndef AIRGLOW_H
#define AIRGLOW_H

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#ifndef MARK_CAPTURE
#error "compile through build.rs, which passes the constants of src/layout.rs"
#endif

/* From the kernel's headers, which cannot be included beside linux/bpf.h for this target. */
#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_MPTCP 262
#define SOL_SOCKET 1
#define SO_BINDTODEVICE 25
#define SO_MARK 36
#define SO_BINDTOIFINDEX 62
#define EPERM 1
#define ENETUNREACH 101
#define ECONNREFUSED 111

/* The loopback device has this index in every network namespace. */
#define LOOPBACK_IFINDEX 1
#define DNS_PORT 53

enum kind { OUTBOUND = 0, PLAINTEXT = 1, HBONE = 2, DNS = 3 };

/* An IPv6 address, or an IPv4 address as ::ffff:a.b.c.d, in network order: one key type for both families. */
struct address {
	__u32 word[4];
};

/* One enrolled pod. `families`: FAMILY_V4 | FAMILY_V6, those whose rules and route stand in the pod. */
struct pod {
	__u32 slot;
	__u32 families;
};

/* A probe's connection, as the pod sees it. Ports in host order. */
struct tuple {
	struct address remote;
	struct address local;
	__u16 remote_port;
	__u16 local_port;
};

/* Cgroup ids; 0 is none. A prober is outside `kubepods` and, if `kubelet` is set, inside that. */
struct config {
	__u64 version;
	__u64 kubepods;
	__u64 kubelet;
};

/* Network namespace cookie -> enrolled pod. Its presence is what captures outbound connections. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_PODS);
	__type(key, __u64);
	__type(value, struct pod);
} pods SEC(".maps");

/* Address -> slot of the pod that has it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_PODS * MAX_ADDRESSES);
	__type(key, struct address);
	__type(value, __u32);
} podips SEC(".maps");

/* slot * KINDS + kind -> listener. 8-byte values, so that a look-up from user space gives the socket's cookie. */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, MAX_PODS * KINDS);
	__type(key, __u32);
	__type(value, __u64);
} listeners SEC(".maps");

/* Probe connections in flight -> time of their start. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_PROBES);
	__type(key, struct tuple);
	__type(value, __u64);
} probes SEC(".maps");

/*
 * Reads one field of a context. clang would merge the loads of both families' branches into "context + variable
 * offset", which the verifier refuses; barrier_var keeps each load as it is written.
 */
#define READ(field)                \
	({                         \
		__u32 word = (field); \
		barrier_var(word); \
		word;              \
	})

/* Sets an address from the four words of a context's IPv6 field. */
#define SET_V6(to, field)                       \
	do {                                    \
		(to)->word[0] = READ(field[0]); \
		(to)->word[1] = READ(field[1]); \
		(to)->word[2] = READ(field[2]); \
		(to)->word[3] = READ(field[3]); \
	} while (0)

static __always_inline void set_v4(struct address *to, __u32 ip)
{
	to->word[0] = 0;
	to->word[1] = 0;
	to->word[2] = bpf_htonl(0xffff);
	to->word[3] = ip;
}

static __always_inline int is_v4(const struct address *a)
{
	return a->word[0] == 0 && a->word[1] == 0 && a->word[2] == bpf_htonl(0xffff);
}

static __always_inline int is_loopback(const struct address *a)
{
	if (is_v4(a))
		return (a->word[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return a->word[0] == 0 && a->word[1] == 0 && a->word[2] == 0 && a->word[3] == bpf_htonl(1);
}

/* Connecting to 0.0.0.0 or :: means connecting to this host. */
static __always_inline int is_unspecified(const struct address *a)
{
	if (is_v4(a))
		return a->word[3] == 0;
	return a->word[0] == 0 && a->word[1] == 0 && a->word[2] == 0 && a->word[3] == 0;
}

static __always_inline int is_link_local_v6(const struct address *a)
{
	return (a->word[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

static __always_inline int is_address_of(const struct address *a, __u32 slot)
{
	const __u32 *owner = bpf_map_lookup_elem(&podips, a);

	return owner && *owner == slot;
}

#endif
