/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Packets that a workload sends: tc ingress on the host side of its veth. */
#include "maps.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("tc")
int from_workload(struct __sk_buff *skb)
{
	(void)skb;
	return 2; // nothing is judged yet: drop
}
