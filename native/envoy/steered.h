/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the datapath knows of a connection that it steered here: a row of its connections map (idmesh/datapath.h), read
 * once when the connection is accepted. The client cannot write it; the address alone would not say as much.
 */
#ifndef IDMESH_ENVOY_STEERED_H
#define IDMESH_ENVOY_STEERED_H

#include "address.h"

struct steered {
	uint64_t domain; /* of the identities */
	uint64_t revision; /* of the endpoints */
	uint32_t source; /* identities */
	uint32_t destination;
	uint32_t source_endpoint; /* indexes, or IDM_NONE */
	uint32_t destination_endpoint;
	uint32_t mark; /* for sockets to the server */
	uint8_t known; /* 0: nobody told anything, and nothing else is set */
	uint8_t l7; /* idm_l7 that it was steered for */
	bool egress; /* the directions to judge */
	bool ingress;
	bool host; /* the client is a process of this host, whatever its address */
	bool workload; /* and a workload without a namespace: its identity alone says who */
	uint8_t reserved[2];
};

struct steered_maps;
/* pins: the folder they are pinned in. NULL with a reason if one cannot be read, or is of another layout. */
struct steered_maps *steered_open(const char *pins, struct idm_error *why);
void steered_close(struct steered_maps *maps);
/*
 * False if the connection was not steered here, or nothing that is told of it can be used: it must be closed. Any
 * thread. Looks for other maps in the folder where these know nothing: the datapath may have begun anew.
 */
bool steered_find(struct steered_maps *maps, const struct address *peer, const struct address *local,
		  struct steered *ret);

#endif
