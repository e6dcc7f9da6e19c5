/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * ICMP errors: they pass with the connection that they are about. The quoted packet must have been sent by whom the
 * error goes to; after that the error is treated as a packet of that connection the other way.
 */
#ifndef IDMESH_ERROR_H
#define IDMESH_ERROR_H

#include "decide.h"

#define ERROR_HEAD 8 /* bytes of ICMP in front of the quoted packet */

/* Turn the error into the packet that it stands for. own: the sender may only speak of what it was sent itself. */
PACKET_GLOBAL int error_read(struct __sk_buff *skb, struct flow *flow, uint32_t own)
{
	struct idm_address source, destination;
	struct packet *packet;
	uint16_t port;
	int reason;

	if (!flow)
		return IDM_PACKET_INVALID;
	packet = &flow->packet;
	source = packet->source;
	destination = packet->destination;
	packet->flags = 0;
	reason = network_read_quoted(skb, packet->transport + ERROR_HEAD, packet);
	if (reason)
		return IDM_PACKET_INVALID;
	if (!packet_same_address(&packet->source, &destination) ||
	    (own && !packet_same_address(&packet->destination, &source)))
		return IDM_PACKET_INVALID;
	packet->source = packet->destination;
	packet->destination = destination;
	port = packet->source_port;
	packet->source_port = packet->destination_port;
	packet->destination_port = port;
	packet->flags = 0;
	packet->tcp_flags = 0;
	flow->error = 1;
	return 0;
}

/* No connection is known that it could be about: read again, and judged by its own type as any ICMP. */
PACKET_GLOBAL int error_restore(struct __sk_buff *skb, struct flow *flow)
{
	int reason;

	if (!flow)
		return IDM_PACKET_INVALID;
	flow->packet.flags = 0;
	flow->error = 0;
	reason = network_read(skb, &flow->packet);
	flow->packet.flags = PACKET_UNTRACKED;
	flow->packet.source_port = 0;
	flow->packet.destination_port = 0;
	return reason;
}

#endif
