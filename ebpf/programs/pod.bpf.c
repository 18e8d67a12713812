/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Once per pod, on its network namespace: which socket gets a new connection (sk_lookup).
 * The context names no namespace, so every pod has an instance of its own that knows its slot and no other.
 * It stands before the pod is entered into `pods` and after it is taken out: what was marked in connect finds its
 * listener whatever happens in between, and inbound capture begins and ends with that one entry.
 */
#include "airglow.h"

/* Written by the loader before the program is verified. */
const volatile __u32 slot = 0xffffffff;
const volatile __u64 netns = 0;

/* A first packet, as the pod sees it. Ports in host order. */
struct arrival {
	struct address remote;
	struct address local;
	__u32 remote_port;
	__u32 local_port;
	__u32 from_lo;
};

static __always_inline void read_arrival(struct bpf_sk_lookup *ctx, struct arrival *a)
{
	a->from_lo = READ(ctx->ingress_ifindex) == LOOPBACK_IFINDEX;
	a->local_port = READ(ctx->local_port);
	a->remote_port = bpf_ntohs(ctx->remote_port);
	if (READ(ctx->family) == AF_INET) {
		set_v4(&a->remote, READ(ctx->remote_ip4));
		set_v4(&a->local, READ(ctx->local_ip4));
	} else {
		SET_V6(&a->remote, ctx->remote_ip6);
		SET_V6(&a->local, ctx->local_ip6);
	}
}

static __always_inline int is_probe(const struct arrival *a)
{
	struct tuple tuple = {};

	tuple.remote = a->remote;
	tuple.local = a->local;
	tuple.remote_port = a->remote_port;
	tuple.local_port = a->local_port;
	return bpf_map_lookup_elem(&probes, &tuple) != 0;
}

/*
 * Between the pod's own addresses. The arriving interface does not tell: for a local address the kernel names the
 * device that has it, not lo. A spoofed source gets no further than this, because the answer goes to the pod itself.
 */
static __always_inline int is_within_pod(const struct arrival *a)
{
	return is_address_of(&a->remote, slot) || is_loopback(&a->remote);
}

static __always_inline int is_entered(void)
{
	__u64 cookie = netns;

	return bpf_map_lookup_elem(&pods, &cookie) != 0;
}

/* -1: not ours, the kernel's own look-up decides. */
static __always_inline int kind_of(__u32 protocol, const struct arrival *a)
{
	int own = is_address_of(&a->local, slot);

	if (protocol == IPPROTO_UDP)
		return a->from_lo && a->local_port == DNS_PORT && !own ? DNS : -1;
	if (own && is_within_pod(a))
		return -1;
	/* By the capture route: the proxy on its way to the application, or what was marked in connect. */
	if (a->from_lo)
		return own ? -1 : OUTBOUND;
	if (!is_entered() || is_probe(a))
		return -1;
	return a->local_port == PORT_HBONE ? HBONE : PLAINTEXT;
}

static __always_inline int assign(struct bpf_sk_lookup *ctx, enum kind kind)
{
	__u32 key = slot * KINDS + kind;
	struct bpf_sock *listener = bpf_map_lookup_elem(&listeners, &key);
	long error;

	if (!listener)
		return SK_DROP;
	/* Without NO_REUSEPORT: the kernel picks one listener of the socket's group. */
	error = bpf_sk_assign(ctx, listener, 0);
	bpf_sk_release(listener);
	return error ? SK_DROP : SK_PASS;
}

SEC("sk_lookup")
int arrive(struct bpf_sk_lookup *ctx)
{
	__u32 protocol = READ(ctx->protocol);
	struct arrival a;
	int kind;

	read_arrival(ctx, &a);
	/* Loopback addresses from outside are spoofed: they get no exemption. */
	if (a.from_lo && is_loopback(&a.local))
		return SK_PASS;
	kind = kind_of(protocol, &a);
	return kind < 0 ? SK_PASS : assign(ctx, kind);
}

char LICENSE[] SEC("license") = "GPL";
