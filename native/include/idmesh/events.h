/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernel's programs report, as flow records: so that the observer need not know who decided. */
#ifndef IDMESH_EVENTS_H
#define IDMESH_EVENTS_H

#include <stddef.h>
#include <stdint.h>

#include "idmesh/flow.h"

/**
 * Write a batch of events as flow records. What finds the ring full is lost, and counted there.
 * @param[in] events struct idm_event one behind another, as the kernel's ring had them.
 * @param[in] size Bytes; what is left behind the last whole event is not read.
 * @return Records written.
 */
size_t idm_events_record(struct idm_ring *ring, const void *events, size_t size);
/* Bytes of one event. */
size_t idm_event_size(void);

#endif
