/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Workloads without a namespace: processes of a cgroup, on the host's own interfaces and perhaps its own addresses.
 *
 * Who such a workload is says its cgroup and nothing that it sends. Its row names an address under which the tables of
 * a revision know it, so that its policy changes with everybody's. Rows of connections are the same as everywhere; but
 * where several workloads share an address, a row is only believed of the workload that it names.
 */
#ifndef IDMESH_WORKLOAD_H
#define IDMESH_WORKLOAD_H

#include "cgroup.h"
#include "decide.h"
#include "report.h"

#define WORKLOAD_LO 1 /* index of lo, in every namespace */

/* The workload whose socket it is. */
struct workload {
	const struct idm_workload *row;
	struct end end; // as the revision in force has it
	struct end peer; // the other end of the flow at hand
};

static __always_inline void workload_begin(struct flow *flow, uint8_t direction)
{
	flow->hook = IDM_HOOK_CGROUP;
	flow->direction = direction;
	flow->now_ns = bpf_ktime_get_boot_ns();
	flow->action = 1;
}

static __always_inline bool workload_is_set(const struct idm_address *address)
{
	static const struct idm_address none;

	return !packet_same_address(address, &none);
}

// Where the tables know it.
static __always_inline const struct idm_address *workload_known(const struct idm_workload *row)
{
	return workload_is_set(&row->address4) ? &row->address4 : &row->address6;
}

/* Its row as the live tables understand it. False: it is not ready, and nothing of it may pass. */
static __always_inline bool workload_load(const struct live *live, const struct idm_workload *row,
					  struct workload *ret)
{
	const struct idm_address *known = workload_known(row);

	ret->row = row;
	lookup_end(live, known, packet_is_mapped(known) ? PACKET_IP4 : PACKET_IP6, &ret->end);
	// The address is nobody's yet, or somebody else's by now.
	return ret->end.endpoint != IDM_NO_INDEX && ret->end.enforced && ret->end.identity == row->identity;
}

/* Whether it may answer there: not at an address that is another endpoint's. */
static __always_inline bool workload_may_hear(const struct live *live, const struct workload *own,
					      const struct idm_address *address)
{
	if (packet_same_address(address, &own->row->address4) || packet_same_address(address, &own->row->address6))
		return true;
	return !lookup_endpoint(live, address);
}

/*
 * Who is at the other end, by its address. Over lo only the host itself sends: who shares its addresses has a row
 * already. From outside, the host's addresses and those of workloads attached here are forged.
 */
static __noinline int workload_meet(const struct flow *flow, struct workload *own, bool is_source, bool incoming,
				    bool over_lo)
{
	const struct idm_address *address = is_source ? &flow->packet.source : &flow->packet.destination;
	int reason = 0;

	if (packet_is_loopback(address) || (incoming && over_lo)) {
		lookup_nobody(&own->peer, lookup_host());
	} else {
		lookup_end(&flow->live, address, flow->packet.kind, &own->peer);
		if (incoming && (own->peer.ifindex || bpf_map_lookup_elem(&locals, address)))
			reason = IDM_PACKET_INVALID_SOURCE_IP;
	}
	// Where all callers know the answer, the compiler leaves an address in its register, and the kernel refuses that.
	asm volatile("" : "+r"(reason));
	return reason;
}

// Its token, by which Envoy speaks for it.
static __noinline bool workload_grant(struct flow *flow, const struct workload *own)
{
	struct idm_address known = *workload_known(own->row);

	return steer_grant_known(&flow->key, &flow->connection, &known);
}

/* Judge a flow that the workload opens, both directions that are ours to judge. Fills the verdict and the row. */
static __noinline int workload_decide_opened(struct flow *flow, const struct workload *own)
{
	const struct end *to = &own->peer;

	decide_describe(flow, &own->end, to, true);
	flow->connection.flags |= IDM_CONNECTION_CGROUP;
	flow->verdict = 0;
	flow->drop_reason = 0;
	if (decide_direction(flow, &own->end, to, IDM_EGRESS))
		return 0;
	if (to->enforced)
		decide_direction(flow, to, &own->end, IDM_INGRESS);
	return 0;
}

#endif
