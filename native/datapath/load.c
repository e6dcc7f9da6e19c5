/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Objects into the kernel. Every object declares all maps; the first one makes and pins them, the others find them.
 * Shapes are compared with the structs this loader was built with before anything is made.
 */
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "internal.h"

static const struct {
	const char *name;
	size_t key, value;
} shapes[] = {
	{"state", 4, sizeof(struct idm_state)},
	{"config", 4, sizeof(struct idm_config)},
	{"endpoints_0", sizeof(struct idm_address), sizeof(struct idm_endpoint_row)},
	{"endpoints_1", sizeof(struct idm_address), sizeof(struct idm_endpoint_row)},
	{"prefixes_0", sizeof(struct idm_prefix_key), sizeof(struct idm_prefix_row)},
	{"prefixes_1", sizeof(struct idm_prefix_key), sizeof(struct idm_prefix_row)},
	{"sides_0", 4, sizeof(struct idm_side_row)},
	{"sides_1", 4, sizeof(struct idm_side_row)},
	{"peers_0", sizeof(struct idm_peer_key), sizeof(struct idm_ports)},
	{"peers_1", sizeof(struct idm_peer_key), sizeof(struct idm_ports)},
	{"spans", 4, sizeof(struct idm_span_row)},
	{"connections", sizeof(struct idm_connection_key), sizeof(struct idm_connection)},
	{"tokens", sizeof(struct idm_token_key), 4},
	{"grants", 4, sizeof(struct idm_grant)},
	{"tokens_outside", sizeof(struct idm_token_key), 4},
	{"grants_outside", 4, sizeof(struct idm_grant)},
	{"attachments", 4, sizeof(struct idm_attachment)},
	{"locals", sizeof(struct idm_address), 4},
	{"fragments", sizeof(struct idm_fragment_key), 4},
	{"services", sizeof(struct idm_service_key), sizeof(struct idm_service)},
	{"backends", 4, sizeof(struct idm_backend)},
	{"affinity", sizeof(struct idm_affinity_key), sizeof(struct idm_affinity)},
	{"translations", sizeof(struct idm_translation_key), sizeof(struct idm_translation)},
	{"workloads", 8, sizeof(struct idm_workload)},
	{"counters", 4, sizeof(struct idm_counter)},
	{"losses", 4, 8},
};

// What libbpf says while one thread loads.
static __thread struct {
	char *text;
	size_t size, used;
	bool verbose;
} told;

int idm_say(struct idm_datapath_error *err, int code, const char *format, ...)
{
	va_list arguments;

	if (!err)
		return code;
	va_start(arguments, format);
	vsnprintf(err->message, sizeof(err->message), format, arguments);
	va_end(arguments);
	return code;
}

const char *idm_meaning(int code)
{
	switch (-code) {
	case EPERM:
		return "not permitted: root, or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are needed";
	case E2BIG:
	case ENOSPC:
		return "no room";
	case ENOMEM:
		return "no memory";
	default:
		return strerror(-code);
	}
}

static int keep_told(enum libbpf_print_level level, const char *format, va_list arguments)
{
	// What it says by the way is of no use, but for the verifier's log of a program that was taken.
	bool wanted = level == LIBBPF_WARN || (told.verbose && strstr(format, "PROG LOAD LOG"));
	int wrote;

	if (!wanted || !told.text || told.used >= told.size)
		return 0;
	wrote = vsnprintf(told.text + told.used, told.size - told.used, format, arguments);
	if (wrote > 0)
		told.used += (size_t)wrote;
	return 0;
}

struct idm_datapath *idm_datapath_create(const char *pins)
{
	struct idm_datapath *datapath = calloc(1, sizeof(*datapath));

	if (!datapath)
		return NULL;
	datapath->pins = strdup(pins);
	if (!datapath->pins) {
		free(datapath);
		return NULL;
	}
	idm_grace_init(&datapath->grace);
	libbpf_set_print(keep_told);
	return datapath;
}

void idm_datapath_destroy(struct idm_datapath *datapath)
{
	if (!datapath)
		return;
	ring_buffer__free(datapath->ring);
	idm_grace_deinit(&datapath->grace);
	for (uint32_t i = 0; i < IDM_SLOTS; i++)
		idm_slot_clear(&datapath->slots[i]);
	idm_rows_unref(datapath->endpoints);
	idm_rows_unref(datapath->prefixes);
	idm_lists_deinit(&datapath->lists);
	for (uint32_t i = 0; i < datapath->map_count; i++)
		close(datapath->maps[i].fd);
	for (uint32_t i = 0; i < datapath->program_count; i++)
		close(datapath->programs[i].fd);
	free(datapath->endpoint_policies);
	free(datapath->places);
	free(datapath->pins);
	free(datapath);
}

int idm_datapath_size(struct idm_datapath *datapath, const char *map, uint32_t rows)
{
	if (strlen(map) >= IDM_DATAPATH_NAME || !rows)
		return -EINVAL;
	if (datapath->size_count == IDM_MAPS_MAX || datapath->map_count)
		return -EBUSY;
	strcpy(datapath->sizes[datapath->size_count].map, map);
	datapath->sizes[datapath->size_count++].rows = rows;
	return 0;
}

struct idm_map *idm_map_find(struct idm_datapath *datapath, const char *name)
{
	for (uint32_t i = 0; i < datapath->map_count; i++) {
		if (!strcmp(datapath->maps[i].name, name))
			return &datapath->maps[i];
	}
	return NULL;
}

struct idm_map *idm_map_of(struct idm_datapath *datapath, const char *name, uint32_t slot)
{
	char whole[IDM_DATAPATH_NAME];

	snprintf(whole, sizeof(whole), "%s_%u", name, slot);
	return idm_map_find(datapath, whole);
}

static int check_shape(const struct bpf_map *map, struct idm_datapath_error *err)
{
	const char *name = bpf_map__name(map);

	for (size_t i = 0; i < sizeof(shapes) / sizeof(*shapes); i++) {
		if (strcmp(shapes[i].name, name))
			continue;
		if (bpf_map__key_size(map) == shapes[i].key && bpf_map__value_size(map) == shapes[i].value)
			return 0;
		return idm_say(err, -EPROTO, "map %s: rows of %u + %u bytes, this loader writes %zu + %zu: "
			       "build objects and loader from the same sources", name, bpf_map__key_size(map),
			       bpf_map__value_size(map), shapes[i].key, shapes[i].value);
	}
	return 0;
}

// Maps of an object's own (.rodata and kin, and what is declared without a pin) are left alone.
static bool is_shared(const struct bpf_map *map)
{
	return !bpf_map__is_internal(map) && bpf_map__pin_path(map);
}

// Size and pin of one map.
static int prepare_map(struct idm_datapath *datapath, struct bpf_map *map, struct idm_datapath_error *err)
{
	const char *name = bpf_map__name(map);
	char path[4096];
	int r;

	if (!is_shared(map))
		return 0;
	r = check_shape(map, err);
	if (r)
		return r;
	for (uint32_t i = 0; i < datapath->size_count; i++) {
		if (!strcmp(datapath->sizes[i].map, name))
			r = bpf_map__set_max_entries(map, datapath->sizes[i].rows);
	}
	if (r)
		return idm_say(err, r, "map %s: its size cannot be set: %s", name, idm_meaning(r));
	snprintf(path, sizeof(path), "%s/%s", datapath->pins, name);
	r = bpf_map__set_pin_path(map, path);
	return r ? idm_say(err, r, "map %s: %s", name, idm_meaning(r)) : 0;
}

// Before libbpf looks, so that the words are ours: it would say "parameter mismatch".
static int check_pinned(struct idm_datapath *datapath, const struct bpf_map *map, struct idm_datapath_error *err)
{
	struct bpf_map_info info = {0};
	uint32_t size = sizeof(info);
	char path[4096];
	int fd, r;

	if (!is_shared(map))
		return 0;
	snprintf(path, sizeof(path), "%s/%s", datapath->pins, bpf_map__name(map));
	fd = bpf_obj_get(path);
	if (fd < 0)
		return errno == ENOENT ? 0 : idm_say(err, -errno, "%s: %s", path, idm_meaning(-errno));
	r = bpf_obj_get_info_by_fd(fd, &info, &size);
	close(fd);
	if (r)
		return idm_say(err, -EEXIST, "%s: is not a map", path);
	if (info.type == bpf_map__type(map) && info.key_size == bpf_map__key_size(map) &&
	    info.value_size == bpf_map__value_size(map) && info.max_entries == bpf_map__max_entries(map) &&
	    info.map_flags == bpf_map__map_flags(map))
		return 0;
	return idm_say(err, -EEXIST, "%s: the pinned map has %u rows of %u + %u bytes, wanted are %u of %u + %u", path,
		       info.max_entries, info.key_size, info.value_size, bpf_map__max_entries(map),
		       bpf_map__key_size(map), bpf_map__value_size(map));
}

static int keep_map(struct idm_datapath *datapath, const struct bpf_map *map)
{
	struct bpf_map_info info = {0};
	uint32_t size = sizeof(info);
	struct idm_map *kept;
	int fd;

	if (!is_shared(map) || idm_map_find(datapath, bpf_map__name(map)))
		return 0;
	if (datapath->map_count == IDM_MAPS_MAX)
		return -ENOSPC;
	fd = dup(bpf_map__fd(map));
	if (fd < 0 || bpf_obj_get_info_by_fd(fd, &info, &size))
		return -errno;
	kept = &datapath->maps[datapath->map_count++];
	snprintf(kept->name, sizeof(kept->name), "%s", bpf_map__name(map));
	kept->fd = fd;
	kept->id = info.id;
	kept->type = info.type;
	kept->key_size = info.key_size;
	kept->value_size = info.value_size;
	kept->rows = info.max_entries;
	return 0;
}

// A program of a name that is there already replaces it: an upgrade.
static int keep_program(struct idm_datapath *datapath, const struct bpf_program *program)
{
	const char *name = bpf_program__name(program);
	int fd = dup(bpf_program__fd(program));

	if (fd < 0)
		return -errno;
	for (uint32_t i = 0; i < datapath->program_count; i++) {
		if (strcmp(datapath->programs[i].name, name))
			continue;
		close(datapath->programs[i].fd);
		datapath->programs[i].fd = fd;
		return 0;
	}
	if (datapath->program_count == IDM_PROGRAMS_MAX) {
		close(fd);
		return -ENOSPC;
	}
	snprintf(datapath->programs[datapath->program_count].name, IDM_DATAPATH_NAME, "%s", name);
	datapath->programs[datapath->program_count++].fd = fd;
	return 0;
}

static int keep_all(struct idm_datapath *datapath, struct bpf_object *object)
{
	struct bpf_program *program;
	struct bpf_map *map;
	int r = 0;

	bpf_object__for_each_map(map, object)
		r = r ? r : keep_map(datapath, map);
	bpf_object__for_each_program(program, object)
		r = r ? r : keep_program(datapath, program);
	return r;
}

static int load_object(struct idm_datapath *datapath, struct bpf_object *object, const char *path,
		       struct idm_datapath_error *err)
{
	struct bpf_program *program;
	struct bpf_map *map;
	int r = 0;

	bpf_object__for_each_map(map, object) {
		r = r ? r : prepare_map(datapath, map, err);
		r = r ? r : check_pinned(datapath, map, err);
	}
	if (r)
		return r;
	bpf_object__for_each_program(program, object) {
		if (told.verbose)
			bpf_program__set_log_level(program, 1);
	}
	r = bpf_object__load(object);
	// The verifier says EACCES or EINVAL, and why in its log.
	if (r == -EACCES || r == -EINVAL)
		return idm_say(err, r, "%s: the kernel's verifier refuses a program", path);
	if (r)
		return idm_say(err, r, "%s: the kernel refuses it: %s", path, idm_meaning(r));
	r = keep_all(datapath, object);
	return r ? idm_say(err, r, "%s: %s", path, idm_meaning(r)) : 0;
}

int idm_datapath_load(struct idm_datapath *datapath, const char *path, char *log, size_t log_size, int verbose,
		      struct idm_datapath_error *err)
{
	struct bpf_object *object;
	int r;

	told.text = log;
	told.size = log_size;
	told.used = 0;
	told.verbose = verbose;
	object = bpf_object__open_file(path, NULL);
	if (object) {
		r = load_object(datapath, object, path, err);
		bpf_object__close(object);
	} else {
		r = idm_say(err, -errno, "%s: not a BPF object: %s", path, strerror(errno));
	}
	told.text = NULL;
	return r;
}

int idm_datapath_program(struct idm_datapath *datapath, const char *name)
{
	for (uint32_t i = 0; i < datapath->program_count; i++) {
		if (!strcmp(datapath->programs[i].name, name))
			return datapath->programs[i].fd;
	}
	return -ENOENT;
}

int idm_datapath_map(struct idm_datapath *datapath, const char *name)
{
	const struct idm_map *map = idm_map_find(datapath, name);

	return map ? map->fd : -ENOENT;
}
