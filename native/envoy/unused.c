// SPDX-License-Identifier: Apache-2.0
// Hooks that Envoy looks up when it loads a kind of filter, and that have nothing to do here.
//
// They take no parameters on purpose: on the platforms Envoy runs on, a callee may ignore what its caller passes.

#include "abi.h"

#define NOTHING(name)                 \
	IDM_HOOK void ON(name)(void); \
	IDM_HOOK void ON(name)(void)  \
	{                             \
	}
// 0 is Continue for every kind of status, no bytes wanted for get_max_read_bytes.
#define ZERO(name)                      \
	IDM_HOOK size_t ON(name)(void); \
	IDM_HOOK size_t ON(name)(void)  \
	{                               \
		return 0;               \
	}

NOTHING(bootstrap_extension_destroy)
NOTHING(bootstrap_extension_config_scheduled)
NOTHING(bootstrap_extension_server_initialized)
NOTHING(bootstrap_extension_worker_thread_initialized)
NOTHING(bootstrap_extension_drain_started)
NOTHING(bootstrap_extension_http_callout_done)
NOTHING(bootstrap_extension_cluster_add_or_update)
NOTHING(bootstrap_extension_cluster_removal)
NOTHING(bootstrap_extension_listener_add_or_update)
NOTHING(bootstrap_extension_listener_removal)
ZERO(bootstrap_extension_admin_request)

ZERO(listener_filter_on_data)
ZERO(listener_filter_get_max_read_bytes)
NOTHING(listener_filter_on_close)
NOTHING(listener_filter_destroy)
NOTHING(listener_filter_scheduled)

ZERO(http_filter_request_body)
ZERO(http_filter_request_trailers)
ZERO(http_filter_response_body)
ZERO(http_filter_response_trailers)
NOTHING(http_filter_http_callout_done)
NOTHING(http_filter_http_stream_headers)
NOTHING(http_filter_http_stream_data)
NOTHING(http_filter_http_stream_trailers)
NOTHING(http_filter_http_stream_complete)
NOTHING(http_filter_http_stream_reset)
NOTHING(http_filter_downstream_above_write_buffer_high_watermark)
NOTHING(http_filter_downstream_below_write_buffer_low_watermark)

ZERO(network_filter_write)
