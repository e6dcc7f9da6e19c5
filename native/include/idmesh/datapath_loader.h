/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The loader of the data path: objects into the kernel, snapshots into maps, programs onto interfaces.
 *
 * What the kernel holds is the truth: a loader that starts over pins of an earlier one reads the tables back and goes
 * on from there. Programs only ever see a whole revision, by the word of idm_state.generation.
 *
 * Functions return 0 or a negative errno, and where there is an err, a sentence for people. One thread at a time may
 * call with one loader, but for events, counters and info, which read only.
 */
#ifndef IDMESH_DATAPATH_LOADER_H
#define IDMESH_DATAPATH_LOADER_H

#include <stddef.h>
#include <stdint.h>

#include "idmesh/engine.h"

#define IDM_DATAPATH_NAME 64

struct idm_datapath;

struct idm_datapath_error {
	char message[1024];
};

/* ---- maps and programs ---- */

/* pins: a folder on a bpffs, in which the maps are pinned by name. */
struct idm_datapath *idm_datapath_create(const char *pins);
/* Lets go of everything here; what is pinned stays in the kernel. */
void idm_datapath_destroy(struct idm_datapath *datapath);
/* Rows that a map gets; before the first load. */
int idm_datapath_size(struct idm_datapath *datapath, const char *map, uint32_t rows);
/**
 * Load an object: maps that are pinned are reused, missing ones made and pinned.
 * @param[out] log  What libbpf and the verifier say; cut at its end. May be NULL.
 * @param[in] verbose 1: the verifier's whole log, also of programs that it accepts.
 * @return 0, -EEXIST if a pinned map is of another shape, or what the kernel said.
 */
int idm_datapath_load(struct idm_datapath *datapath, const char *object, char *log, size_t log_size, int verbose,
		      struct idm_datapath_error *err);
/* Borrowed descriptors, or -ENOENT. */
int idm_datapath_program(struct idm_datapath *datapath, const char *program);
int idm_datapath_map(struct idm_datapath *datapath, const char *map);

struct idm_datapath_info {
	char name[IDM_DATAPATH_NAME];
	uint32_t id;
	uint32_t type; /* the kernel's BPF_MAP_TYPE_* */
	uint32_t key_size;
	uint32_t value_size;
	uint32_t max_rows;
	uint32_t rows; /* counted by us, or IDM_NO_INDEX: not known without walking it */
	uint64_t bytes; /* the kernel's memory; 0: it does not say */
};
/* The map's shape and how full it is; from 0 on until -ENOENT. */
int idm_datapath_info(struct idm_datapath *datapath, uint32_t index, struct idm_datapath_info *ret);
/* Rows of a hash, counted by walking it; dead rows of LRU maps included. Negative errno. */
int64_t idm_datapath_rows(struct idm_datapath *datapath, const char *map);

/* 1 if the kernel has programs (what 0) or maps (what 1) of this type, 0 if not, or negative. */
int idm_datapath_probe(int what, uint32_t number);

/* ---- tables ---- */

/**
 * Read both slots back from the kernel; before anything is published.
 * @return 0, -ESTALE if the pins hold another layout: they are not to be used.
 */
int idm_datapath_recover(struct idm_datapath *datapath, struct idm_datapath_error *err);

struct idm_datapath_report {
	uint64_t revision;
	uint32_t generation;
	uint32_t endpoints, prefixes, policies, peers, spans; /* rows of the revision */
	uint32_t written, deleted;                            /* rows that the spare slot differed in */
	uint64_t compile_ns, wait_ns, write_ns, publish_ns;   /* expanding, grace period, maps, the word */
};
/**
 * Bring the spare slot to a snapshot and make it live.
 * @param[in] snapshot Borrowed.
 * @return 0, -ENOSPC if it does not fit, -ESTALE if the maps belong to another identity domain. The live generation
 *         stays in force with every error.
 */
int idm_datapath_publish(struct idm_datapath *datapath, struct idm_snapshot *snapshot,
			 struct idm_datapath_report *ret, struct idm_datapath_error *err);
/* The live row of `state`: struct idm_state. */
int idm_datapath_state(struct idm_datapath *datapath, void *ret, size_t size);

/* Returns when no program reads any more what was replaced before the call. Takes some milliseconds. */
int idm_datapath_grace(struct idm_datapath *datapath);

/* ---- this host ---- */

/* Rows of a pinned map of another set into ours of that name; -EPROTO if their sizes differ. */
int idm_datapath_copy(struct idm_datapath *datapath, const char *map, int from);
/* A row of any map by its descriptor; -EPROTO if its values have another size. */
int idm_datapath_read_row(int map, const void *key, void *value, size_t size);
/* Where workloads are, as a pinned endpoints map of another set says. */
int idm_datapath_adopt(struct idm_datapath *datapath, int endpoints);
/* The same of a set that is open here: of addresses, too, that none of its revisions has. */
int idm_datapath_take_places(struct idm_datapath *datapath, const struct idm_datapath *from);

/* Addresses are 16 bytes each, IPv4 as ::ffff:a.b.c.d. mac: 6 bytes, or NULL for any. */
int idm_datapath_workload(struct idm_datapath *datapath, uint32_t ifindex, uint32_t peer_ifindex, const uint8_t *mac,
			  const uint8_t *addresses, size_t count, struct idm_datapath_error *err);
int idm_datapath_workload_remove(struct idm_datapath *datapath, uint32_t ifindex);
/* The host's own addresses: exactly these stand in `locals`. */
int idm_datapath_locals(struct idm_datapath *datapath, const uint8_t *addresses, size_t count,
			struct idm_datapath_error *err);

/* ---- attaching; netns: descriptor of the network namespace that ifindex belongs to, or -1 for the caller's own ---- */

/* A link of any kind: target is an ifindex (tcx), a cgroup's or a network namespace's descriptor. Returns the link. */
int idm_datapath_link(int program, int target, uint32_t attach_type, int netns);
/* Put another program in an existing link's place; no packet falls between. */
int idm_datapath_link_update(int link, int program);

struct idm_datapath_link {
	uint32_t id;
	uint32_t type; /* the kernel's BPF_LINK_TYPE_* */
	uint32_t program; /* id */
	uint32_t ifindex; /* tcx: 0 if the interface is gone */
	uint32_t attach_type;
	uint64_t cgroup; /* cgroup links: its id; namespaces: the inode */
};
int idm_datapath_link_info(int link, struct idm_datapath_link *ret);
int idm_datapath_link_detach(int link);

/* clsact, for kernels without tcx. Our filter has a handle and priority of its own, so that it can be replaced. */
int idm_datapath_clsact(int program, uint32_t ifindex, int egress, int netns);
/* Our filter away; 0 if there was none. */
int idm_datapath_clsact_remove(uint32_t ifindex, int egress, int netns);
/* The qdisc away, with everybody's filters: only where nobody else has any. */
int idm_datapath_clsact_destroy(uint32_t ifindex, int netns);
/* Id of the program in our filter, 0 if there is none, or negative. */
int64_t idm_datapath_clsact_query(uint32_t ifindex, int egress, int netns);

int idm_datapath_pin(int fd, const char *path);
/* A descriptor of what is pinned there, or negative. */
int idm_datapath_pinned(const char *path);

/* ---- reading ---- */

/**
 * Take events out of the ring.
 * @param[out] ret Whole struct idm_event.
 * @return Bytes written; 0 if there are none. timeout_ms: how long to wait for the first one, -1: for ever.
 */
int64_t idm_datapath_events(struct idm_datapath *datapath, void *ret, size_t size, int timeout_ms);
/* Readable when there are events. */
int idm_datapath_events_fd(struct idm_datapath *datapath);
/* Sums over all CPUs: IDM_COUNTERS * struct idm_counter; events that found no room. */
int idm_datapath_counters(struct idm_datapath *datapath, void *ret, size_t size, uint64_t *losses);
/**
 * Rows of a hash, batch by batch.
 * @param[in,out] cursor Room for a key and 8 bytes; zeroed with first 1.
 * @return Rows written to keys and values; -ENOENT after the last.
 */
int64_t idm_datapath_read(struct idm_datapath *datapath, const char *map, int first, void *cursor, void *keys,
			  void *values, uint32_t count);
int idm_datapath_lookup(struct idm_datapath *datapath, const char *map, const void *key, void *value);
int idm_datapath_update(struct idm_datapath *datapath, const char *map, const void *key, const void *value);
int idm_datapath_delete(struct idm_datapath *datapath, const char *map, const void *key);

/* ---- tests ---- */

struct idm_datapath_run {
	uint32_t repeat;
	uint32_t answer;   /* what the program returned */
	uint32_t duration_ns; /* mean */
	uint32_t size_out; /* in: room in data_out; out: bytes of the packet */
	uint32_t context_size;
};
/* BPF_PROG_TEST_RUN in a namespace. context is read and written (192 bytes for tc, 72 for sk_lookup), or NULL. */
int idm_datapath_run(int program, const void *data, uint32_t size, void *data_out, void *context,
		     struct idm_datapath_run *run, int netns);

#endif
