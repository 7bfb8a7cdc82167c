"""The tags of sessions as counted rows: what a trace costs does not grow with its session.

Until now each trace wrote the union of its session's tags anew, and each change of a trace counted its session again. What
is only more moves the sums; tags are counted, so they may also become less; all else still counts the session again."""

import sqlalchemy as sa
from alembic import context, op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.create_table(
        "session_tags",
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("tag", sa.Text(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("project_id", "session_id", "tag"),
        postgresql_with={"fillfactor": "80"},
    )
    op.create_index("session_tags_tag", "session_tags", ["project_id", "tag", "session_id"])
    # Null: a session of before, whose tags are counted when one of its traces changes, or by the next migration.
    op.add_column("sessions", sa.Column("tag_count", sa.Integer(), nullable=True))
    for statement in FUNCTIONS:
        op.execute(statement)


def downgrade() -> None:
    for statement in context.script.get_revision("0002").module.SESSIONS:
        if "CREATE FUNCTION" in statement:
            op.execute(statement.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION"))
    op.execute("SELECT sessions_counted_again(array_agg(project_id), array_agg(session_id)) FROM sessions")
    for function in ("counted(uuid[], text[])", "moved(uuid[], text[], text[], int[])"):
        op.execute(f"DROP FUNCTION session_tags_{function}")
    op.execute(
        "DROP FUNCTION sessions_grown(uuid[], text[], int[], timestamptz[], float8[], int[], bigint[], float8[])"
    )
    op.drop_column("sessions", "tag_count")
    op.drop_table("session_tags")


FUNCTIONS = (
    # Both are called with the sessions' locks, which whoever changes one of their tags holds: so the rows of tags are never
    # waited for, and no circle leads through them.
    """
    CREATE FUNCTION session_tags_counted(projects uuid[], names text[]) RETURNS void LANGUAGE plpgsql
    SET search_path = public AS $$
    BEGIN
        DELETE FROM session_tags t USING unnest(projects, names) AS k (project_id, session_id)
        WHERE t.project_id = k.project_id AND t.session_id = k.session_id;
        INSERT INTO session_tags (project_id, session_id, tag, n)
        SELECT k.project_id, k.session_id, g.tag, count(*)
        FROM unnest(projects, names) AS k (project_id, session_id)
        JOIN traces t ON t.project_id = k.project_id AND t.session_id = k.session_id
        CROSS JOIN LATERAL (SELECT DISTINCT tag FROM unnest(t.tags) AS tag) g
        GROUP BY 1, 2, 3;
        UPDATE sessions s SET tag_count = (
                SELECT count(*) FROM session_tags t WHERE t.project_id = k.project_id AND t.session_id = k.session_id
            ), tags = ARRAY(
                SELECT tag FROM session_tags t WHERE t.project_id = k.project_id AND t.session_id = k.session_id
                ORDER BY tag LIMIT 200
            )
        FROM unnest(projects, names) AS k (project_id, session_id)
        WHERE s.project_id = k.project_id AND s.session_id = k.session_id;
    END $$
    """,
    # By how much each tag of each session moved, at most once for each. What the session shows are its first tags.
    """
    CREATE FUNCTION session_tags_moved(projects uuid[], names text[], words text[], counts int[]) RETURNS void
    LANGUAGE plpgsql SET search_path = public AS $$
    DECLARE old_projects uuid[]; old_names text[];
    BEGIN
        SELECT array_agg(s.project_id), array_agg(s.session_id) INTO old_projects, old_names
        FROM (SELECT DISTINCT * FROM unnest(projects, names) AS u (project_id, session_id)) k
        JOIN sessions s ON s.project_id = k.project_id AND s.session_id = k.session_id
        WHERE s.tag_count IS NULL;
        IF old_projects IS NOT NULL THEN
            PERFORM session_tags_counted(old_projects, old_names);  -- it sees what moved
        END IF;
        WITH moved AS MATERIALIZED (
            SELECT u.* FROM unnest(projects, names, words, counts) AS u (project_id, session_id, tag, n)
            WHERE old_projects IS NULL OR NOT EXISTS (
                SELECT 1 FROM unnest(old_projects, old_names) AS o (project_id, session_id)
                WHERE o.project_id = u.project_id AND o.session_id = u.session_id
            )
        ), more AS (
            INSERT INTO session_tags AS t (project_id, session_id, tag, n)
            SELECT project_id, session_id, tag, n FROM moved WHERE n > 0 ORDER BY 1, 2, 3
            ON CONFLICT (project_id, session_id, tag) DO UPDATE SET n = t.n + excluded.n
            RETURNING project_id, session_id, (xmax = 0)::int AS n  -- an updated row was locked by this transaction
        ), gone AS (
            DELETE FROM session_tags t USING moved m
            WHERE m.n < 0 AND t.project_id = m.project_id AND t.session_id = m.session_id AND t.tag = m.tag
                AND t.n + m.n <= 0
            RETURNING t.project_id, t.session_id, -1 AS n
        ), less AS (
            UPDATE session_tags t SET n = t.n + m.n FROM moved m
            WHERE m.n < 0 AND t.project_id = m.project_id AND t.session_id = m.session_id AND t.tag = m.tag
                AND t.n + m.n > 0
        )
        SELECT array_agg(project_id), array_agg(session_id), array_agg(n) INTO projects, names, counts
        FROM (
            SELECT project_id, session_id, sum(n)::int AS n FROM (TABLE more UNION ALL TABLE gone) AS each
            WHERE n <> 0 GROUP BY project_id, session_id
        ) changed;
        -- What is not changed is not written: a long array stays where it is.
        UPDATE sessions s SET tag_count = s.tag_count + k.n, tags = CASE WHEN s.tags = k.tags THEN s.tags ELSE k.tags END
        FROM (
            SELECT u.*, ARRAY(
                SELECT tag FROM session_tags t WHERE t.project_id = u.project_id AND t.session_id = u.session_id
                ORDER BY tag LIMIT 200
            ) AS tags
            FROM unnest(projects, names, counts) AS u (project_id, session_id, n)
        ) k
        WHERE s.project_id = k.project_id AND s.session_id = k.session_id;
    END $$
    """,
    """
    CREATE OR REPLACE FUNCTION sessions_added() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS $$
    DECLARE projects uuid[]; names text[]; words text[]; counts int[];
    BEGIN
        INSERT INTO sessions AS s (
            project_id, session_id, trace_count, error_count, first_trace_at, last_trace_at, ended_at, latency_ms,
            span_count, total_tokens, total_cost, user_id, tags, tag_count
        )
        SELECT project_id, session_id, count(*), count(*) FILTER (WHERE status = 'ERROR'), min(started_at),
            max(started_at), max(coalesce(ended_at, started_at)),
            sum(greatest(extract(epoch FROM ended_at - started_at) * 1000, 0)) FILTER (WHERE ended_at IS NOT NULL),
            sum(span_count), sum(total_tokens), sum(total_cost),
            (array_agg(user_id ORDER BY started_at DESC) FILTER (WHERE user_id IS NOT NULL))[1], '{}', 0
        FROM added WHERE session_id IS NOT NULL GROUP BY project_id, session_id
        ORDER BY project_id, session_id
        ON CONFLICT (project_id, session_id) DO UPDATE SET
            trace_count = s.trace_count + excluded.trace_count,
            error_count = s.error_count + excluded.error_count,
            first_trace_at = least(s.first_trace_at, excluded.first_trace_at),
            last_trace_at = greatest(s.last_trace_at, excluded.last_trace_at),
            ended_at = greatest(s.ended_at, excluded.ended_at),
            latency_ms = coalesce(s.latency_ms + excluded.latency_ms, s.latency_ms, excluded.latency_ms),
            span_count = s.span_count + excluded.span_count,
            total_tokens = s.total_tokens + excluded.total_tokens,
            total_cost = s.total_cost + excluded.total_cost,
            user_id = CASE WHEN excluded.last_trace_at >= s.last_trace_at THEN coalesce(excluded.user_id, s.user_id)
                ELSE coalesce(s.user_id, excluded.user_id) END;
        SELECT array_agg(project_id), array_agg(session_id), array_agg(tag), array_agg(n)
        INTO projects, names, words, counts
        FROM (
            SELECT project_id, session_id, tag, count(DISTINCT trace_id)::int AS n
            FROM added CROSS JOIN unnest(tags) AS tag WHERE session_id IS NOT NULL GROUP BY 1, 2, 3
        ) moved;
        IF projects IS NOT NULL THEN
            PERFORM session_tags_moved(projects, names, words, counts);
        END IF;
        RETURN NULL;
    END $$
    """,
    """
    CREATE OR REPLACE FUNCTION sessions_counted_again(projects uuid[], names text[]) RETURNS void LANGUAGE plpgsql
    SET search_path = public AS $$
    BEGIN
        -- A row to lock, then its lock, then the count, as three statements: who makes the same session at the same time is
        -- waited for, and the count sees what others committed meanwhile.
        INSERT INTO sessions (
            project_id, session_id, trace_count, error_count, first_trace_at, last_trace_at, ended_at, span_count,
            total_tokens, total_cost, tags, tag_count
        )
        SELECT DISTINCT u.project_id, u.session_id, 0, 0, now(), now(), now(), 0, 0, 0, '{}'::text[], 0
        FROM unnest(projects, names) AS u (project_id, session_id) ORDER BY 1, 2
        ON CONFLICT DO NOTHING;
        PERFORM 1 FROM sessions s JOIN unnest(projects, names) AS k (project_id, session_id)
            USING (project_id, session_id) ORDER BY s.project_id, s.session_id FOR UPDATE OF s;
        DELETE FROM sessions s USING unnest(projects, names) AS k (project_id, session_id)
        WHERE s.project_id = k.project_id AND s.session_id = k.session_id AND NOT EXISTS (
            SELECT 1 FROM traces t WHERE t.project_id = k.project_id AND t.session_id = k.session_id
        );
        INSERT INTO sessions AS s (
            project_id, session_id, trace_count, error_count, first_trace_at, last_trace_at, ended_at, latency_ms,
            span_count, total_tokens, total_cost, user_id, tags, tag_count
        )
        SELECT k.project_id, k.session_id, n.*, '{}', 0
        FROM (SELECT DISTINCT * FROM unnest(projects, names) AS u (project_id, session_id)) k
        CROSS JOIN LATERAL (
            SELECT count(*) AS traces, count(*) FILTER (WHERE status = 'ERROR'), min(started_at) AS first,
                max(started_at), max(coalesce(ended_at, started_at)),
                sum(greatest(extract(epoch FROM ended_at - started_at) * 1000, 0)) FILTER (WHERE ended_at IS NOT NULL),
                coalesce(sum(span_count), 0), coalesce(sum(total_tokens), 0), coalesce(sum(total_cost), 0),
                (array_agg(user_id ORDER BY started_at DESC) FILTER (WHERE user_id IS NOT NULL))[1]
            FROM traces t WHERE t.project_id = k.project_id AND t.session_id = k.session_id
        ) n
        WHERE n.traces > 0
        ORDER BY k.project_id, k.session_id
        ON CONFLICT (project_id, session_id) DO UPDATE SET
            trace_count = excluded.trace_count, error_count = excluded.error_count,
            first_trace_at = excluded.first_trace_at, last_trace_at = excluded.last_trace_at,
            ended_at = excluded.ended_at, latency_ms = excluded.latency_ms, span_count = excluded.span_count,
            total_tokens = excluded.total_tokens, total_cost = excluded.total_cost, user_id = excluded.user_id;
    END $$
    """,
    # What is more adds: an end that comes later, spans, tokens, cost. Counts of whole numbers may go either way.
    """
    CREATE FUNCTION sessions_grown(
        projects uuid[], names text[], errors int[], ends timestamptz[], latencies float8[], spans int[], tokens bigint[],
        costs float8[]
    ) RETURNS void LANGUAGE plpgsql SET search_path = public AS $$
    BEGIN
        PERFORM 1 FROM sessions s JOIN unnest(projects, names) AS k (project_id, session_id)
            USING (project_id, session_id) ORDER BY s.project_id, s.session_id FOR NO KEY UPDATE OF s;
        UPDATE sessions s SET error_count = s.error_count + k.errors, ended_at = greatest(s.ended_at, k.ended_at),
            latency_ms = coalesce(s.latency_ms + k.latency, s.latency_ms, k.latency),
            span_count = s.span_count + k.spans, total_tokens = s.total_tokens + k.tokens,
            total_cost = s.total_cost + k.cost
        FROM unnest(projects, names, errors, ends, latencies, spans, tokens, costs)
            AS k (project_id, session_id, errors, ended_at, latency, spans, tokens, cost)
        WHERE s.project_id = k.project_id AND s.session_id = k.session_id;
    END $$
    """,
    """
    CREATE OR REPLACE FUNCTION sessions_changed() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS $$
    DECLARE
        projects uuid[]; names text[]; words text[]; counts int[]; errors int[]; ends timestamptz[];
        latencies float8[]; spans int[]; tokens bigint[]; costs float8[]; only_more bool;
    BEGIN
        SELECT array_agg(project_id), array_agg(session_id), array_agg(error), array_agg(ended), array_agg(latency),
            array_agg(span), array_agg(token), array_agg(cost), bool_and(more)
        INTO projects, names, errors, ends, latencies, spans, tokens, costs, only_more
        FROM (
            SELECT n.project_id, n.session_id,
                sum((n.status = 'ERROR')::int - (o.status = 'ERROR')::int)::int AS error,
                max(coalesce(n.ended_at, n.started_at)) AS ended,
                sum(
                    greatest(extract(epoch FROM n.ended_at - n.started_at) * 1000, 0)
                    - coalesce(greatest(extract(epoch FROM o.ended_at - o.started_at) * 1000, 0), 0)
                ) FILTER (WHERE n.ended_at IS NOT NULL)::float8 AS latency,
                sum(n.span_count - o.span_count)::int AS span, sum(n.total_tokens - o.total_tokens)::bigint AS token,
                sum(n.total_cost - o.total_cost) AS cost,
                bool_and(
                    (n.session_id, n.user_id, n.started_at) IS NOT DISTINCT FROM (o.session_id, o.user_id, o.started_at)
                    AND (n.ended_at IS NOT NULL OR o.ended_at IS NULL)
                    AND coalesce(n.ended_at, n.started_at) >= coalesce(o.ended_at, o.started_at)
                    AND n.total_cost >= o.total_cost
                ) AS more
            FROM gone o JOIN added n USING (trace_id)
            WHERE (o.session_id, o.status, o.started_at, o.ended_at, o.span_count, o.total_tokens, o.total_cost,
                o.user_id, o.tags) IS DISTINCT FROM (n.session_id, n.status, n.started_at, n.ended_at, n.span_count,
                n.total_tokens, n.total_cost, n.user_id, n.tags)
                AND coalesce(o.session_id, n.session_id) IS NOT NULL
            GROUP BY 1, 2
        ) changed;
        IF projects IS NULL THEN
            RETURN NULL;
        END IF;
        IF only_more THEN
            PERFORM sessions_grown(projects, names, errors, ends, latencies, spans, tokens, costs);
        ELSE
            SELECT array_agg(project_id), array_agg(session_id) INTO projects, names
            FROM (
                SELECT project_id, session_id FROM unnest(projects, names) AS u (project_id, session_id)
                UNION
                SELECT o.project_id, o.session_id FROM gone o JOIN added n USING (trace_id)
                WHERE o.session_id IS DISTINCT FROM n.session_id
            ) moved WHERE session_id IS NOT NULL;
            PERFORM sessions_counted_again(projects, names);
        END IF;
        SELECT array_agg(project_id), array_agg(session_id), array_agg(tag), array_agg(n)
        INTO projects, names, words, counts
        FROM (
            SELECT project_id, session_id, tag, sum(n)::int AS n FROM (
                SELECT DISTINCT project_id, session_id, tag, trace_id, 1 AS n FROM added CROSS JOIN unnest(tags) AS tag
                UNION ALL
                SELECT DISTINCT project_id, session_id, tag, trace_id, -1 FROM gone CROSS JOIN unnest(tags) AS tag
            ) each WHERE session_id IS NOT NULL GROUP BY 1, 2, 3 HAVING sum(n) <> 0
        ) moved;
        IF projects IS NOT NULL THEN
            PERFORM session_tags_moved(projects, names, words, counts);
        END IF;
        RETURN NULL;
    END $$
    """,
    """
    CREATE OR REPLACE FUNCTION sessions_gone() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS $$
    DECLARE projects uuid[]; names text[]; words text[]; counts int[];
    BEGIN
        SELECT array_agg(project_id ORDER BY project_id, session_id),
            array_agg(session_id ORDER BY project_id, session_id)
        INTO projects, names
        FROM (SELECT DISTINCT project_id, session_id FROM gone WHERE session_id IS NOT NULL) lost;
        IF projects IS NULL THEN
            RETURN NULL;
        END IF;
        PERFORM sessions_counted_again(projects, names);
        SELECT array_agg(project_id), array_agg(session_id), array_agg(tag), array_agg(n)
        INTO projects, names, words, counts
        FROM (
            SELECT project_id, session_id, tag, -count(DISTINCT trace_id)::int AS n
            FROM gone CROSS JOIN unnest(tags) AS tag WHERE session_id IS NOT NULL GROUP BY 1, 2, 3
        ) moved;
        IF projects IS NOT NULL THEN
            PERFORM session_tags_moved(projects, names, words, counts);
        END IF;
        RETURN NULL;
    END $$
    """,
)
