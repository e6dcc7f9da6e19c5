/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Every map of the data path, declared once: each object holds all of them and shares them by pin, so that objects can
 * be replaced one by one. Layouts are those of idmesh/datapath.h.
 *
 * The sizes here are small defaults: the loader sets max_entries before it loads. What no program may write is
 * BPF_F_RDONLY_PROG: a fault in a program cannot change a table.
 */
#ifndef IDMESH_MAPS_H
#define IDMESH_MAPS_H

// The kernel has a type of this name. Include maps.h before anything else that wants vmlinux.h.
#define config kernel_config
#include "vmlinux.h"
#undef config
#include <bpf/bpf_helpers.h>
#include "idmesh/datapath.h"

#define IDM_MAP(NAME, TYPE, KEY, VALUE, SIZE, FLAGS)        \
	struct {                                            \
		__uint(type, TYPE);                         \
		__type(key, KEY);                           \
		__type(value, VALUE);                       \
		__uint(max_entries, SIZE);                  \
		__uint(map_flags, FLAGS);                   \
		__uint(pinning, LIBBPF_PIN_BY_NAME);        \
	} NAME SEC(".maps")

// The kernel's values: vmlinux.h has no macros.
#define IDM_F_NO_PREALLOC 1u
#define IDM_F_READ_ONLY 128u

IDM_MAP(state, BPF_MAP_TYPE_ARRAY, uint32_t, struct idm_state, 1, IDM_F_READ_ONLY);
IDM_MAP(config, BPF_MAP_TYPE_ARRAY, uint32_t, struct idm_config, 1, IDM_F_READ_ONLY);

// Tables of a revision, twice: the live slot and the one being filled.
IDM_MAP(endpoints_0, BPF_MAP_TYPE_HASH, struct idm_address, struct idm_endpoint_row, 16384, IDM_F_READ_ONLY);
IDM_MAP(endpoints_1, BPF_MAP_TYPE_HASH, struct idm_address, struct idm_endpoint_row, 16384, IDM_F_READ_ONLY);
IDM_MAP(prefixes_0, BPF_MAP_TYPE_LPM_TRIE, struct idm_prefix_key, struct idm_prefix_row, 16384,
	IDM_F_READ_ONLY | IDM_F_NO_PREALLOC);
IDM_MAP(prefixes_1, BPF_MAP_TYPE_LPM_TRIE, struct idm_prefix_key, struct idm_prefix_row, 16384,
	IDM_F_READ_ONLY | IDM_F_NO_PREALLOC);
IDM_MAP(sides_0, BPF_MAP_TYPE_ARRAY, uint32_t, struct idm_side_row, 2048, IDM_F_READ_ONLY);
IDM_MAP(sides_1, BPF_MAP_TYPE_ARRAY, uint32_t, struct idm_side_row, 2048, IDM_F_READ_ONLY);
IDM_MAP(peers_0, BPF_MAP_TYPE_HASH, struct idm_peer_key, struct idm_ports, 65536, IDM_F_READ_ONLY);
IDM_MAP(peers_1, BPF_MAP_TYPE_HASH, struct idm_peer_key, struct idm_ports, 65536, IDM_F_READ_ONLY);
IDM_MAP(spans, BPF_MAP_TYPE_ARRAY, uint32_t, struct idm_span_row, 65536, IDM_F_READ_ONLY);

// What programs keep themselves. An LRU may forget any row: then policy is asked again.
IDM_MAP(connections, BPF_MAP_TYPE_LRU_HASH, struct idm_connection_key, struct idm_connection, 65536, 0);
IDM_MAP(fragments, BPF_MAP_TYPE_LRU_HASH, struct idm_fragment_key, uint32_t, 8192, 0);
IDM_MAP(tokens, BPF_MAP_TYPE_LRU_HASH, struct idm_token_key, uint32_t, 16384, 0);
IDM_MAP(grants, BPF_MAP_TYPE_LRU_HASH, uint32_t, struct idm_grant, 16384, 0);
IDM_MAP(tokens_outside, BPF_MAP_TYPE_LRU_HASH, struct idm_token_key, uint32_t, 16384, 0);
IDM_MAP(grants_outside, BPF_MAP_TYPE_LRU_HASH, uint32_t, struct idm_grant, 16384, 0);
IDM_MAP(affinity, BPF_MAP_TYPE_LRU_HASH, struct idm_affinity_key, struct idm_affinity, 16384, 0);
IDM_MAP(translations, BPF_MAP_TYPE_LRU_HASH, struct idm_translation_key, struct idm_translation, 16384, 0);

// What the loader says of this host, whatever the revision.
IDM_MAP(attachments, BPF_MAP_TYPE_HASH, uint32_t, struct idm_attachment, 4096, IDM_F_READ_ONLY);
IDM_MAP(locals, BPF_MAP_TYPE_HASH, struct idm_address, uint32_t, 1024, IDM_F_READ_ONLY);
IDM_MAP(services, BPF_MAP_TYPE_HASH, struct idm_service_key, struct idm_service, 8192, IDM_F_READ_ONLY);
IDM_MAP(backends, BPF_MAP_TYPE_ARRAY, uint32_t, struct idm_backend, 32768, IDM_F_READ_ONLY);
IDM_MAP(workloads, BPF_MAP_TYPE_HASH, uint64_t, struct idm_workload, 4096, IDM_F_READ_ONLY);

// Envoy's transparent listeners, 0 for IPv4 and 1 for IPv6: put in by the program at Envoy's cgroup when they start to
// listen, gone when they are closed.
IDM_MAP(listeners, BPF_MAP_TYPE_SOCKMAP, uint32_t, uint64_t, 2, 0);

IDM_MAP(counters, BPF_MAP_TYPE_PERCPU_ARRAY, uint32_t, struct idm_counter, IDM_COUNTERS, 0);
IDM_MAP(losses, BPF_MAP_TYPE_PERCPU_ARRAY, uint32_t, uint64_t, 1, 0);

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 * 1024 * 1024);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} events SEC(".maps");

// The loader compares it before it gives an object to the kernel; no program reads it.
const uint32_t idmesh_layout SEC("idmesh.layout") __attribute__((used)) = IDM_LAYOUT;

#endif
