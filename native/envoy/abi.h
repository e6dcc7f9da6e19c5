/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What we use of Envoy's dynamic module ABI, and nothing else.
 *
 * Envoy passes borrowed bytes as {pointer, size} and a header as {name, value}: the same shapes as the
 * engine's idm_bytes and idm_header_line, so that no fact of a request is copied on its way to a decision.
 * Handles are opaque; each kind has a struct tag of its own, so that the compiler tells them apart.
 *
 * Everything declared here without IDM_NEWER is exported by Envoy 1.38, the oldest one served. A symbol that
 * an Envoy lacks would keep the whole module from loading, so newer ones are weak and tested for NULL.
 *
 * Source: source/extensions/dynamic_modules/abi/abi.h of envoyproxy/envoy.
 */
#ifndef IDMESH_ENVOY_ABI_H
#define IDMESH_ENVOY_ABI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "idmesh/engine.h"

#define IDM_HOOK __attribute__((visibility("default")))
#define IDM_NEWER __attribute__((weak))

/* Sizes the ABI fixes. */
_Static_assert(sizeof(struct idm_bytes) == 2 * sizeof(void *), "buffers are {pointer, size}");
_Static_assert(sizeof(struct idm_header_line) == 4 * sizeof(void *), "headers are {name, value}");

/* Told to Envoy at load; another string than its own only makes it warn. */
#define ENVOY_ABI_OLDER "v0.1.0" /* 1.38, 1.39 */
#define ENVOY_ABI_NEWEST "v0.2.0" /* 1.40 */

struct envoy_bootstrap_config;
struct envoy_bootstrap;
struct envoy_timer;
struct envoy_http_config;
struct envoy_http;
struct envoy_http_scheduler;
struct envoy_listener_config;
struct envoy_listener;
struct envoy_network_config;
struct envoy_network;
struct envoy_network_scheduler;

enum envoy_log_level { ENVOY_DEBUG = 1, ENVOY_INFO = 2, ENVOY_WARN = 3, ENVOY_ERROR = 4 };
enum envoy_header_map { ENVOY_REQUEST_HEADERS = 0, ENVOY_RESPONSE_HEADERS = 2, ENVOY_RESPONSE_TRAILERS = 3 };
enum envoy_attribute { ENVOY_REQUEST_PROTOCOL = 10, ENVOY_RESPONSE_CODE = 15, ENVOY_UPSTREAM_ADDRESS = 41 };
enum envoy_http_status { ENVOY_HTTP_CONTINUE = 0, ENVOY_HTTP_STOP = 1, ENVOY_HTTP_STOP_ALL_WATERMARK = 4 };
enum envoy_filter_status { ENVOY_CONTINUE = 0, ENVOY_STOP = 1 };
enum envoy_close { ENVOY_CLOSE_NO_FLUSH = 1, ENVOY_CLOSE_RESET = 4 };
/* ENVOY_CONNECTED comes when a TLS handshake is complete. */
enum envoy_connection_event { ENVOY_REMOTE_CLOSE = 0, ENVOY_LOCAL_CLOSE = 1, ENVOY_CONNECTED = 2 };
enum envoy_reset { ENVOY_RESET_LOCAL = 0 };
enum envoy_socket_state { ENVOY_PREBIND = 0 };
enum envoy_socket_side { ENVOY_UPSTREAM = 0 };
enum envoy_metric { ENVOY_METRIC_OK = 0 };
enum envoy_file_event { ENVOY_FILE_MOVED = 1, ENVOY_FILE_MODIFIED = 2 };

struct envoy_pair {
	struct idm_bytes key;
	struct idm_bytes value;
};

#define CALLBACK(name) envoy_dynamic_module_callback_##name
#define ON(name) envoy_dynamic_module_on_##name

/* ---- any thread ---- */
void CALLBACK(log)(enum envoy_log_level level, struct idm_bytes message);

/* ---- main thread ---- */
bool CALLBACK(is_validation_mode)(void);
uint32_t CALLBACK(get_concurrency)(void);

void CALLBACK(bootstrap_extension_config_signal_init_complete)(struct envoy_bootstrap_config *config);
bool CALLBACK(bootstrap_extension_file_watcher_add_watch)(struct envoy_bootstrap_config *config,
							   struct idm_bytes path, uint32_t events);
struct envoy_timer *CALLBACK(bootstrap_extension_timer_new)(struct envoy_bootstrap_config *config);
void CALLBACK(bootstrap_extension_timer_enable)(struct envoy_timer *timer, uint64_t delay_ms);
void CALLBACK(bootstrap_extension_timer_delete)(struct envoy_timer *timer);
enum envoy_metric CALLBACK(bootstrap_extension_config_define_counter)(struct envoy_bootstrap_config *config,
								       struct idm_bytes name, struct idm_bytes *labels,
								       size_t label_count, size_t *id);
enum envoy_metric CALLBACK(bootstrap_extension_config_increment_counter)(struct envoy_bootstrap_config *config,
									  size_t id, struct idm_bytes *values,
									  size_t value_count, uint64_t by);
enum envoy_metric CALLBACK(bootstrap_extension_config_define_gauge)(struct envoy_bootstrap_config *config,
								     struct idm_bytes name, struct idm_bytes *labels,
								     size_t label_count, size_t *id);
enum envoy_metric CALLBACK(bootstrap_extension_config_set_gauge)(struct envoy_bootstrap_config *config, size_t id,
								  struct idm_bytes *values, size_t value_count,
								  uint64_t value);

/* ---- HTTP filter ---- */
enum envoy_metric CALLBACK(http_filter_config_define_counter)(struct envoy_http_config *config, struct idm_bytes name,
							       struct idm_bytes *labels, size_t label_count,
							       size_t *id);
enum envoy_metric CALLBACK(http_filter_increment_counter)(struct envoy_http *filter, size_t id,
							   struct idm_bytes *values, size_t value_count, uint64_t by);
size_t CALLBACK(http_get_headers_size)(struct envoy_http *filter, enum envoy_header_map map);
bool CALLBACK(http_get_headers)(struct envoy_http *filter, enum envoy_header_map map, struct idm_header_line *ret);
/* The index-th line of that name; count may be NULL. */
bool CALLBACK(http_get_header)(struct envoy_http *filter, enum envoy_header_map map, struct idm_bytes name,
			       struct idm_bytes *ret, size_t index, size_t *count);
bool CALLBACK(http_add_header)(struct envoy_http *filter, enum envoy_header_map map, struct idm_bytes name,
			       struct idm_bytes value);
/* A NULL value removes the header. */
bool CALLBACK(http_set_header)(struct envoy_http *filter, enum envoy_header_map map, struct idm_bytes name,
			       struct idm_bytes value);
/*
 * Calls local_reply hooks before it returns. gRPC requests get status 200, the body as grpc-message, and grpc-status 0
 * (success!) whatever the status, unless the headers bring a grpc-status (tried in 1.38 to 1.40).
 */
void CALLBACK(http_send_response)(struct envoy_http *filter, uint32_t status, struct idm_header_line *headers,
				  size_t header_count, struct idm_bytes body, struct idm_bytes details);
void CALLBACK(http_set_dynamic_metadata_string)(struct envoy_http *filter, struct idm_bytes name_space,
						struct idm_bytes key, struct idm_bytes value);
/* All at once: since 1.39. */
IDM_NEWER void CALLBACK(http_set_dynamic_metadata_string_batch)(struct envoy_http *filter, struct idm_bytes name_space,
								const struct envoy_pair *pairs, size_t count);
/* Never called: its presence tells 1.40 from the older ones. */
IDM_NEWER bool CALLBACK(http_get_downstream_direct_remote_address)(struct envoy_http *filter, struct idm_bytes *ret,
								   uint32_t *port);
bool CALLBACK(http_get_filter_state_bytes)(struct envoy_http *filter, struct idm_bytes key, struct idm_bytes *ret);
bool CALLBACK(http_filter_get_attribute_string)(struct envoy_http *filter, enum envoy_attribute id,
						struct idm_bytes *ret);
bool CALLBACK(http_filter_get_attribute_int)(struct envoy_http *filter, enum envoy_attribute id, uint64_t *ret);
struct envoy_http_scheduler *CALLBACK(http_filter_scheduler_new)(struct envoy_http *filter);
void CALLBACK(http_filter_scheduler_commit)(struct envoy_http_scheduler *scheduler, uint64_t event);
void CALLBACK(http_filter_scheduler_delete)(struct envoy_http_scheduler *scheduler);
void CALLBACK(http_filter_continue_decoding)(struct envoy_http *filter);
void CALLBACK(http_filter_reset_stream)(struct envoy_http *filter, enum envoy_reset reason, struct idm_bytes details);

/* For the connection to the server; connections whose options differ share no pool. */
bool CALLBACK(http_set_socket_option_int)(struct envoy_http *filter, int64_t level, int64_t name,
					  enum envoy_socket_state state, enum envoy_socket_side side, int64_t value);

/* ---- listener filter ---- */
int64_t CALLBACK(listener_filter_get_socket_fd)(struct envoy_listener *filter);
bool CALLBACK(listener_filter_get_remote_address)(struct envoy_listener *filter, struct idm_bytes *ret,
						  uint32_t *port);
bool CALLBACK(listener_filter_get_local_address)(struct envoy_listener *filter, struct idm_bytes *ret,
						 uint32_t *port);
bool CALLBACK(listener_filter_get_requested_server_name)(struct envoy_listener *filter, struct idm_bytes *ret);
/* "tls" behind the tls_inspector if the client speaks it; false if nobody looked, or it is not TLS. */
bool CALLBACK(listener_filter_get_detected_transport_protocol)(struct envoy_listener *filter, struct idm_bytes *ret);
bool CALLBACK(listener_filter_set_filter_state)(struct envoy_listener *filter, struct idm_bytes key,
						struct idm_bytes value);
void CALLBACK(listener_filter_set_dynamic_metadata_string)(struct envoy_listener *filter, struct idm_bytes name_space,
							   struct idm_bytes key, struct idm_bytes value);
void CALLBACK(listener_filter_close_socket)(struct envoy_listener *filter, struct idm_bytes details);

/* ---- network filter ---- */
enum envoy_metric CALLBACK(network_filter_config_define_counter)(struct envoy_network_config *config,
								  struct idm_bytes name, size_t *id);
enum envoy_metric CALLBACK(network_filter_increment_counter)(struct envoy_network *filter, size_t id, uint64_t by);
bool CALLBACK(network_get_filter_state_bytes)(struct envoy_network *filter, struct idm_bytes key,
					      struct idm_bytes *ret);
void CALLBACK(network_set_dynamic_metadata_string)(struct envoy_network *filter, struct idm_bytes name_space,
						   struct idm_bytes key, struct idm_bytes value);
void CALLBACK(network_filter_close_with_details)(struct envoy_network *filter, enum envoy_close how,
						 struct idm_bytes details);
bool CALLBACK(network_filter_is_ssl)(struct envoy_network *filter);
/* After a hook returned ENVOY_STOP: the filters behind this one go on. */
void CALLBACK(network_filter_continue_reading)(struct envoy_network *filter);
/* For the connection to the server. */
void CALLBACK(network_set_socket_option_int)(struct envoy_network *filter, int64_t level, int64_t name,
					     enum envoy_socket_state state, int64_t value);
struct envoy_network_scheduler *CALLBACK(network_filter_scheduler_new)(struct envoy_network *filter);
/* From any thread; nothing happens once the filter is gone. */
void CALLBACK(network_filter_scheduler_commit)(struct envoy_network_scheduler *scheduler, uint64_t event);
void CALLBACK(network_filter_scheduler_delete)(struct envoy_network_scheduler *scheduler);

#endif
