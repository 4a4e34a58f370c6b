# Asked by on-call.toml: is the user on call now, and for how long does the answer hold?
#
# data.shifts is a list such as [{"user": "erin", "from": 1767225600, "to": 1767268800}], in
# seconds since 1970, loaded from wherever shifts are planned.

package recuse

import rego.v1

now := time.now_ns() / 1000000000

default on_call := {"match": false}

on_call := {"match": true, "why": "on call", "cache_seconds": min([60, shift.to - now])} if {
	some shift in data.shifts
	shift.user == input.user
	shift.from <= now
	now < shift.to
}
