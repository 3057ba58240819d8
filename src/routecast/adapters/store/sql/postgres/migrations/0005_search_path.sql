-- oldest program: 1
-- Functions that do not depend on the session's search path: a pooler may hand out a session that
-- another program has used.
ALTER FUNCTION routecast.begin_commit SET search_path = routecast, pg_temp;
ALTER FUNCTION routecast.add_delta SET search_path = routecast, pg_temp;
ALTER FUNCTION routecast.write_delta SET search_path = routecast, pg_temp;
ALTER FUNCTION routecast.current_epoch SET search_path = routecast, pg_temp;
ALTER FUNCTION routecast.begin_generation SET search_path = routecast, pg_temp;
ALTER FUNCTION routecast.drop_generation SET search_path = routecast, pg_temp;
ALTER FUNCTION routecast.note_unsummed_hours SET search_path = routecast, pg_temp;
ALTER FUNCTION routecast.note_near_series SET search_path = routecast, pg_temp;
