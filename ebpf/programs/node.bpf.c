/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Once per node, on its cgroup: outbound capture (connect4, connect6), keeping what is captured so (set_option), and the
 * exemption of health probes (sockops).
 * A socket is passed untouched, or it is captured, or its connect fails: there is no fourth way.
 */
#include "airglow.h"

#define PASS 1

/* kubepods may sit below several slices; deeper than any container runtime puts it. */
#define MAX_CGROUP_DEPTH 16

/* Cgroup ids whose processes are the proxy. Never a mark: an application can set a mark. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_ZTUNNELS);
	__type(key, __u64);
	__type(value, __u8);
} ztunnels SEC(".maps");

/* Cookies of the node's own network namespace: only from there can a probe come. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_HOSTS);
	__type(key, __u64);
	__type(value, __u8);
} hosts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct config);
} config SEC(".maps");

/* Sockets of the node that may probe. Written at connect, where the caller's cgroup is known; read by sockops. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u8);
} probers SEC(".maps");

/* The loader's notes, by slot: what was done for a pod, for the process that comes after. No program reads them. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_PODS);
	__type(key, __u32);
	__type(value, __u8[RECORD_SIZE]);
} records SEC(".maps");

static __always_inline int refuse(int error)
{
	bpf_set_retval(-error);
	return 0;
}

static __always_inline int is_within(__u64 cgroup)
{
#pragma unroll
	for (int level = 0; level < MAX_CGROUP_DEPTH; level++) {
		if (bpf_get_current_ancestor_cgroup_id(level) == cgroup)
			return 1;
	}
	return 0;
}

static __always_inline int may_probe(void)
{
	__u32 zero = 0;
	const struct config *config_now = bpf_map_lookup_elem(&config, &zero);

	if (!config_now)
		return 0;
	if (config_now->kubepods && is_within(config_now->kubepods))
		return 0;
	if (config_now->kubelet && !is_within(config_now->kubelet))
		return 0;
	return 1;
}

/* Decides anew at every connect: a socket can be connected, disconnected and handed to another process. */
static __always_inline void note_prober(struct bpf_sock_addr *ctx, __u64 netns, const struct address *to)
{
	__u8 yes = 1;

	if (!bpf_map_lookup_elem(&hosts, &netns) || !bpf_map_lookup_elem(&podips, to))
		return;
	if (may_probe())
		bpf_sk_storage_get(&probers, ctx->sk, &yes, BPF_SK_STORAGE_GET_F_CREATE);
	else
		bpf_sk_storage_delete(&probers, ctx->sk);
}

static __always_inline int has_listener(__u32 slot)
{
	__u32 key = slot * KINDS + OUTBOUND;
	struct bpf_sock *listener = bpf_map_lookup_elem(&listeners, &key);

	if (!listener)
		return 0;
	bpf_sk_release(listener);
	return 1;
}

static __always_inline int capture(struct bpf_sock_addr *ctx, const struct pod *pod, const struct address *to)
{
	__u32 family = is_v4(to) ? FAMILY_V4 : FAMILY_V6;
	__u32 mark = MARK_CAPTURE;
	char no_device = 0;

	/* Without this family's local route a marked packet would leave by the main table. */
	if (!(pod->families & family))
		return refuse(ENETUNREACH);
	/* The kernel binds such a socket to its device after this hook, which no route of ours can undo. */
	if (is_link_local_v6(to))
		return refuse(ECONNREFUSED);
	/* The local route is on lo: a socket bound to another device would not find it, and leave by the main table. */
	if (ctx->sk->bound_dev_if && bpf_setsockopt(ctx, SOL_SOCKET, SO_BINDTODEVICE, &no_device, 1))
		return refuse(ECONNREFUSED);
	/* sk_lookup drops when nobody listens, and a dropped IPv4 SYN is answered by nothing: refuse here. */
	if (!has_listener(pod->slot))
		return refuse(ECONNREFUSED);
	if (bpf_setsockopt(ctx, SOL_SOCKET, SO_MARK, &mark, sizeof(mark)))
		return refuse(ECONNREFUSED);
	return PASS;
}

static __always_inline int connecting(struct bpf_sock_addr *ctx, const struct address *to)
{
	__u64 netns = bpf_get_netns_cookie(ctx);
	const struct pod *pod = bpf_map_lookup_elem(&pods, &netns);
	__u64 cgroup;

	if (!pod) {
		note_prober(ctx, netns, to);
		return PASS;
	}
	if (is_loopback(to) || is_unspecified(to) || is_address_of(to, pod->slot))
		return PASS;
	cgroup = bpf_get_current_cgroup_id();
	if (bpf_map_lookup_elem(&ztunnels, &cgroup))
		return PASS;
	return capture(ctx, pod, to);
}

static __always_inline int is_stream(__u32 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	struct address to;

	if (!is_stream(ctx->protocol))
		return PASS;
	set_v4(&to, ctx->user_ip4);
	return connecting(ctx, &to);
}

/* Also IPv4 destinations, as mapped addresses: the kernel calls no other hook for those. */
SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	struct address to;

	if (!is_stream(ctx->protocol))
		return PASS;
	SET_V6(&to, ctx->user_ip6);
	return connecting(ctx, &to);
}

static __always_inline int is_rerouting(const struct bpf_sockopt *ctx)
{
	if (ctx->level != SOL_SOCKET)
		return 0;
	return ctx->optname == SO_MARK || ctx->optname == SO_BINDTODEVICE || ctx->optname == SO_BINDTOIFINDEX;
}

/* A multipath socket's mark is on its subflow, which cannot be seen from here: any that is connected counts. */
static __always_inline int is_carried(const struct bpf_sock *sk)
{
	if (sk->protocol == IPPROTO_MPTCP)
		return sk->state != BPF_TCP_CLOSE && sk->state != BPF_TCP_LISTEN;
	return sk->mark == MARK_CAPTURE || sk->mark == MARK_RETURN;
}

/*
 * Without its mark, or bound to a device, an established connection of ours would go on by the pod's own routes, in the
 * clear: the other end would not know it, but everyone on the way could read it. No privilege is needed for the binding.
 * The application's end of a connection from the proxy leads to the client in the same way.
 */
SEC("cgroup/setsockopt")
int set_option(struct bpf_sockopt *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	__u64 netns, cgroup;

	/* The kernel takes the caller's value as it is, also one that is longer than the copy made for us. */
	ctx->optlen = 0;
	if (!is_rerouting(ctx) || !sk || !is_carried(sk))
		return PASS;
	netns = bpf_get_netns_cookie(ctx);
	if (!bpf_map_lookup_elem(&pods, &netns))
		return PASS;
	cgroup = bpf_get_current_cgroup_id();
	if (bpf_map_lookup_elem(&ztunnels, &cgroup))
		return PASS;
	return refuse(EPERM);
}

/* `family` is the packets' family: AF_INET also for a mapped address on an IPv6 socket. */
static __always_inline void source_of(struct bpf_sock_ops *ctx, struct address *source)
{
	if (READ(ctx->family) == AF_INET)
		set_v4(source, READ(ctx->local_ip4));
	else
		SET_V6(source, ctx->local_ip6);
}

static __always_inline void destination_of(struct bpf_sock_ops *ctx, struct address *destination)
{
	if (READ(ctx->family) == AF_INET)
		set_v4(destination, READ(ctx->remote_ip4));
	else
		SET_V6(destination, ctx->remote_ip6);
}

/* As the pod sees the connection. */
static __always_inline void tuple_of(struct bpf_sock_ops *ctx, struct tuple *tuple)
{
	__builtin_memset(tuple, 0, sizeof(*tuple));
	source_of(ctx, &tuple->remote);
	destination_of(ctx, &tuple->local);
	tuple->remote_port = ctx->local_port;
	tuple->local_port = bpf_ntohl(ctx->remote_port);
}

static __always_inline int is_prober(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	return sk && bpf_sk_storage_get(&probers, sk, 0, 0);
}

/* Runs before the SYN leaves, with source address and port chosen. */
static __always_inline void probe_starts(struct bpf_sock_ops *ctx)
{
	struct tuple tuple;
	__u64 now;

	if (!is_prober(ctx))
		return;
	tuple_of(ctx, &tuple);
	if (!bpf_map_lookup_elem(&podips, &tuple.local))
		return;
	now = bpf_ktime_get_ns();
	bpf_map_update_elem(&probes, &tuple, &now, BPF_ANY);
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
}

static __always_inline void probe_ends(struct bpf_sock_ops *ctx)
{
	struct tuple tuple;

	if (!is_prober(ctx))
		return;
	tuple_of(ctx, &tuple);
	bpf_map_delete_elem(&probes, &tuple);
}

/*
 * A connect that was marked before its pod was withdrawn, and was then kept waiting for the processor, could come after
 * the pod's rules and listeners are gone. The socket can be listed by now, and was marked before it could be: whoever
 * withdraws a pod and then lists its connections sees every one that is not let go here.
 */
static __always_inline void let_go_if_withdrawn(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct address source;
	__u32 no_mark = 0;
	__u64 netns;

	if (!sk || sk->mark != MARK_CAPTURE)
		return;
	source_of(ctx, &source);
	if (!bpf_map_lookup_elem(&podips, &source))
		return;
	netns = bpf_get_netns_cookie(ctx);
	if (!bpf_map_lookup_elem(&pods, &netns))
		bpf_setsockopt(ctx, SOL_SOCKET, SO_MARK, &no_mark, sizeof(no_mark));
}

/* Called a dozen times per connection of every socket of the node: anything but these two returns at once. */
SEC("sockops")
int sock_ops(struct bpf_sock_ops *ctx)
{
	__u32 op = ctx->op;

	if (op == BPF_SOCK_OPS_TCP_CONNECT_CB) {
		let_go_if_withdrawn(ctx);
		probe_starts(ctx);
	} else if (op == BPF_SOCK_OPS_STATE_CB && ctx->args[1] == BPF_TCP_CLOSE) {
		probe_ends(ctx);
	}
	return 1;
}

char LICENSE[] SEC("license") = "GPL";
