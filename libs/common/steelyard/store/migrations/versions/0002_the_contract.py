"""What the whole HTTP contract needs: sums beside traces, sessions, scores' history, keys that expire, limits."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"

NUMBER = """CASE WHEN status = 'SUCCESS' THEN
    CASE data_type WHEN 'NUMERIC' THEN value::float8 WHEN 'BOOLEAN' THEN (value = 'true')::int::float8 END
END"""


def upgrade() -> None:
    _who_asks()
    _sums()
    _scores()
    _runs()
    for statement in (*SESSIONS, *TAGS):
        op.execute(statement)


def _who_asks() -> None:
    op.add_column("organizations", sa.Column("external_id", sa.Text(), nullable=True))
    op.create_unique_constraint("organizations_external_id_key", "organizations", ["external_id"])
    op.add_column("projects", sa.Column("description", sa.Text(), server_default=sa.text("''"), nullable=False))
    op.create_table(
        "rate_limits",
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("times", postgresql.ARRAY(sa.DateTime(timezone=True)), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("project_id", "scope"),
    )
    op.create_table(
        "key_usage",
        sa.Column("caller", sa.Text(), nullable=False),
        sa.Column("window_start", sa.DateTime(timezone=True), nullable=False),
        sa.Column("taken", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("caller"),
        prefixes=["UNLOGGED"],
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("request_hash", sa.LargeBinary(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("response", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("project_id", "scope", "key"),
    )
    op.create_index("idempotency_keys_old", "idempotency_keys", ["created_at"])


def _sums() -> None:
    """Reading numbers out of users' JSON costs more than adding them up: it is done once, when they arrive."""
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        op.add_column("spans", sa.Column(name, sa.BigInteger(), nullable=True))
        op.add_column("traces", sa.Column(name, sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("spans", sa.Column("total_cost", sa.Float(), nullable=True))
    op.add_column("traces", sa.Column("total_cost", sa.Float(), server_default=sa.text("0"), nullable=False))
    op.add_column("traces", sa.Column("span_count", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.execute(COUNT_SPANS)
    op.execute(COUNT_TRACES)
    op.drop_index("traces_newest", "traces")
    op.create_index(
        "traces_newest",
        "traces",
        ["project_id", sa.literal_column("started_at DESC"), "trace_id"],
        postgresql_include=["status", "ended_at"],
    )
    op.create_index("traces_name", "traces", ["project_id", "name", "trace_id"])
    op.create_index(
        "traces_user",
        "traces",
        ["project_id", "user_id", "started_at"],
        postgresql_where=sa.text("user_id IS NOT NULL"),
        postgresql_include=["status"],
    )
    op.create_index(
        "spans_models",
        "spans",
        ["project_id", "started_at"],
        postgresql_where=sa.text("model IS NOT NULL"),
        postgresql_include=["model", "total_tokens", "total_cost"],
    )


def _scores() -> None:
    op.add_column("trace_scores", sa.Column("number", sa.Float(), sa.Computed(NUMBER, persisted=True), nullable=True))
    op.create_index(
        "trace_scores_name",
        "trace_scores",
        ["project_id", "name", sa.literal_column("created_at DESC")],
        postgresql_include=["status", "number"],
    )
    for column in ("source", "data_type", "environment"):
        op.create_index(
            f"trace_scores_{column}", "trace_scores", ["project_id", column, sa.literal_column("created_at DESC")]
        )
    op.drop_index("trace_scores_run", "trace_scores")
    op.create_index(
        "trace_scores_run", "trace_scores", ["eval_run_id", "project_id", sa.literal_column("created_at DESC"), "id"]
    )
    op.create_index(
        "trace_scores_parked",
        "trace_scores",
        ["trace_id"],
        postgresql_where=sa.text("status = 'PENDING'"),
    )
    op.create_table(
        "score_history",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("score_id", sa.Uuid(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("value", sa.Text(), nullable=True),
        sa.Column("data_type", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("author_user_id", sa.Text(), nullable=True),
        sa.Column("eval_run_id", sa.Uuid(), nullable=True),
        sa.Column("metadata", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("said_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("replaced_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["score_id"], ["trace_scores.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("score_history_score", "score_history", ["score_id"])


def _runs() -> None:
    op.add_column("runs", sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index("runs_deleted", "runs", ["deleted_at"], postgresql_where=sa.text("deleted_at IS NOT NULL"))
    op.create_index("runs_children", "runs", ["parent_run_id"], postgresql_where=sa.text("parent_run_id IS NOT NULL"))
    op.create_index(
        "pairs_failed", "pairs", ["run_id", "trace_id", "metric"], postgresql_where=sa.text("outcome = 'FAILED'")
    )


COUNT_SPANS = """
    UPDATE spans s SET prompt_tokens = n.prompt, completion_tokens = n.completion,
        total_tokens = coalesce(n.total, n.prompt + n.completion, n.prompt, n.completion), total_cost = n.cost
    FROM (
        SELECT o.trace_id, o.span_id,
            coalesce(
                max(v) FILTER (WHERE k = 'u.prompt_tokens'), max(v) FILTER (WHERE k = 'u.input_tokens')
            )::bigint AS prompt,
            coalesce(
                max(v) FILTER (WHERE k = 'u.completion_tokens'), max(v) FILTER (WHERE k = 'u.output_tokens')
            )::bigint AS completion,
            (max(v) FILTER (WHERE k = 'u.total_tokens'))::bigint AS total,
            coalesce(
                max(v) FILTER (WHERE k = 'c.total'), sum(v) FILTER (WHERE k LIKE 'c.%' AND k <> 'c.total')
            )::float8 AS cost
        FROM spans o CROSS JOIN LATERAL (
            SELECT 'u.' || key AS k, least(greatest(value::text::numeric, 0), 1e12) AS v
            FROM json_each(CASE WHEN json_typeof(o.token_usage) = 'object' THEN o.token_usage ELSE '{}' END)
            WHERE json_typeof(value) = 'number'
            UNION ALL
            SELECT 'c.' || key, least(greatest(value::text::numeric, 0), 1e12)
            FROM json_each(CASE WHEN json_typeof(o.cost) = 'object' THEN o.cost ELSE '{}' END)
            WHERE json_typeof(value) = 'number'
        ) numbers GROUP BY 1, 2
    ) n WHERE n.trace_id = s.trace_id AND n.span_id = s.span_id
"""
COUNT_TRACES = """
    UPDATE traces t SET span_count = n.spans, prompt_tokens = n.prompt, completion_tokens = n.completion,
        total_tokens = n.total, total_cost = n.cost
    FROM (
        SELECT trace_id, count(*) AS spans, coalesce(sum(prompt_tokens), 0) AS prompt,
            coalesce(sum(completion_tokens), 0) AS completion, coalesce(sum(total_tokens), 0) AS total,
            coalesce(sum(total_cost), 0) AS cost
        FROM spans GROUP BY trace_id
    ) n WHERE n.trace_id = t.trace_id
"""

# Sessions are a view of traces that is kept up by the database itself, whichever statement changes a trace: listing
# them would add up the whole project's traces otherwise. What was only added moves the sums; whatever may take
# something away (a deletion, a move, an earlier beginning or a tag that is gone) counts the session again.
SESSIONS = (
    """
    CREATE TABLE sessions (
        project_id uuid NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
        session_id text NOT NULL,
        trace_count int NOT NULL,
        error_count int NOT NULL,
        first_trace_at timestamptz NOT NULL,
        last_trace_at timestamptz NOT NULL,
        ended_at timestamptz NOT NULL,
        latency_ms float8,
        span_count bigint NOT NULL,
        total_tokens bigint NOT NULL,
        total_cost float8 NOT NULL,
        user_id text,
        tags text[] NOT NULL,
        PRIMARY KEY (project_id, session_id)
    )
    """,
    "CREATE INDEX sessions_recent ON sessions (project_id, last_trace_at DESC, session_id)",
    """
    CREATE FUNCTION sessions_added() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS $$
    BEGIN
        INSERT INTO sessions AS s (
            project_id, session_id, trace_count, error_count, first_trace_at, last_trace_at, ended_at, latency_ms,
            span_count,
            total_tokens, total_cost, user_id, tags
        )
        SELECT n.*, coalesce(g.tags, '{}') FROM (
            SELECT project_id, session_id, count(*), count(*) FILTER (WHERE status = 'ERROR'), min(started_at),
                max(started_at), max(coalesce(ended_at, started_at)),
                sum(greatest(extract(epoch FROM ended_at - started_at) * 1000, 0)) FILTER (WHERE ended_at IS NOT NULL),
                sum(span_count), sum(total_tokens), sum(total_cost),
                (array_agg(user_id ORDER BY started_at DESC) FILTER (WHERE user_id IS NOT NULL))[1]
            FROM added WHERE session_id IS NOT NULL GROUP BY project_id, session_id
        ) n
        LEFT JOIN (
            SELECT project_id, session_id, array_agg(DISTINCT tag) AS tags FROM added CROSS JOIN unnest(tags) AS tag
            WHERE session_id IS NOT NULL GROUP BY project_id, session_id
        ) g USING (project_id, session_id)
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
                ELSE coalesce(s.user_id, excluded.user_id) END,
            tags = CASE WHEN s.tags @> excluded.tags THEN s.tags ELSE ARRAY(
                SELECT unnest(s.tags) UNION SELECT unnest(excluded.tags) ORDER BY 1
            ) END;
        RETURN NULL;
    END $$
    """,
    """
    CREATE FUNCTION sessions_counted_again(projects uuid[], names text[]) RETURNS void LANGUAGE plpgsql
    SET search_path = public AS $$
    BEGIN
        -- A row to lock, then its lock, then the count, as three statements: who makes the same session at the same time is
        -- waited for, and the count sees what others committed meanwhile.
        INSERT INTO sessions (
            project_id, session_id, trace_count, error_count, first_trace_at, last_trace_at, ended_at, span_count,
            total_tokens, total_cost, tags
        )
        SELECT DISTINCT u.project_id, u.session_id, 0, 0, now(), now(), now(), 0, 0, 0, '{}'::text[]
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
            span_count,
            total_tokens, total_cost, user_id, tags
        )
        SELECT k.project_id, k.session_id, n.*, coalesce((
                SELECT array_agg(DISTINCT tag ORDER BY tag) FROM traces t CROSS JOIN unnest(t.tags) AS tag
                WHERE t.project_id = k.project_id AND t.session_id = k.session_id
            ), '{}')
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
            total_tokens = excluded.total_tokens,
            total_cost = excluded.total_cost, user_id = excluded.user_id, tags = excluded.tags;
    END $$
    """,
    """
    CREATE FUNCTION sessions_changed() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS $$
    DECLARE projects uuid[]; names text[];
    BEGIN
        SELECT array_agg(project_id ORDER BY project_id, session_id),
            array_agg(session_id ORDER BY project_id, session_id)
        INTO projects, names
        FROM (
            SELECT o.project_id, o.session_id FROM gone o JOIN added n USING (trace_id)
            WHERE (o.session_id, o.status, o.started_at, o.ended_at, o.span_count, o.total_tokens, o.total_cost,
                o.user_id, o.tags) IS DISTINCT FROM (n.session_id, n.status, n.started_at, n.ended_at, n.span_count,
                n.total_tokens, n.total_cost, n.user_id, n.tags)
            UNION
            SELECT n.project_id, n.session_id FROM gone o JOIN added n USING (trace_id)
            WHERE o.session_id IS DISTINCT FROM n.session_id
        ) moved WHERE session_id IS NOT NULL;
        IF projects IS NOT NULL THEN
            PERFORM sessions_counted_again(projects, names);
        END IF;
        RETURN NULL;
    END $$
    """,
    """
    CREATE FUNCTION sessions_gone() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS $$
    DECLARE projects uuid[]; names text[];
    BEGIN
        SELECT array_agg(project_id ORDER BY project_id, session_id),
            array_agg(session_id ORDER BY project_id, session_id)
        INTO projects, names
        FROM (SELECT DISTINCT project_id, session_id FROM gone WHERE session_id IS NOT NULL) lost;
        IF projects IS NOT NULL THEN
            PERFORM sessions_counted_again(projects, names);
        END IF;
        RETURN NULL;
    END $$
    """,
    """
    INSERT INTO sessions
    SELECT t.project_id, t.session_id, count(*), count(*) FILTER (WHERE status = 'ERROR'), min(started_at),
        max(started_at), max(coalesce(ended_at, started_at)),
            sum(greatest(extract(epoch FROM ended_at - started_at) * 1000, 0)) FILTER (WHERE ended_at IS NOT NULL),
        sum(span_count), sum(total_tokens), sum(total_cost),
        (array_agg(user_id ORDER BY started_at DESC) FILTER (WHERE user_id IS NOT NULL))[1],
        coalesce((
            SELECT array_agg(DISTINCT tag ORDER BY tag) FROM traces a CROSS JOIN unnest(a.tags) AS tag
            WHERE a.project_id = t.project_id AND a.session_id = t.session_id
        ), '{}')
    FROM traces t WHERE session_id IS NOT NULL GROUP BY t.project_id, t.session_id
    """,
    """
    CREATE TRIGGER sessions_added AFTER INSERT ON traces REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION sessions_added()
    """,
    """
    CREATE TRIGGER sessions_changed AFTER UPDATE ON traces REFERENCING OLD TABLE AS gone NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION sessions_changed()
    """,
    """
    CREATE TRIGGER sessions_gone AFTER DELETE ON traces REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION sessions_gone()
    """,
)

# Tags a second time, as rows: under row-level security an index is used only for operators that are leakproof, which
# equality is and the overlap of arrays is not.
TAGS = (
    """
    CREATE TABLE trace_tags (
        project_id uuid NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
        tag text NOT NULL,
        started_at timestamptz NOT NULL,
        trace_id uuid NOT NULL,
        PRIMARY KEY (project_id, tag, started_at, trace_id)
    )
    """,
    """
    CREATE FUNCTION tags_added() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS $$
    BEGIN
        INSERT INTO trace_tags (project_id, tag, started_at, trace_id)
        SELECT DISTINCT project_id, tag, started_at, trace_id FROM added CROSS JOIN unnest(tags) AS tag;
        RETURN NULL;
    END $$
    """,
    """
    CREATE FUNCTION tags_changed() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS $$
    BEGIN
        IF NOT EXISTS (
            SELECT 1 FROM gone o JOIN added n USING (trace_id)
            WHERE (o.tags, o.started_at) IS DISTINCT FROM (n.tags, n.started_at)
        ) THEN
            RETURN NULL;
        END IF;
        DELETE FROM trace_tags t USING gone o CROSS JOIN unnest(o.tags) AS was (tag)
        WHERE t.project_id = o.project_id AND t.tag = was.tag AND t.started_at = o.started_at
            AND t.trace_id = o.trace_id;
        INSERT INTO trace_tags (project_id, tag, started_at, trace_id)
        SELECT DISTINCT project_id, tag, started_at, trace_id FROM added CROSS JOIN unnest(tags) AS tag;
        RETURN NULL;
    END $$
    """,
    """
    CREATE FUNCTION tags_gone() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS $$
    BEGIN
        DELETE FROM trace_tags t USING gone o CROSS JOIN unnest(o.tags) AS was (tag)
        WHERE t.project_id = o.project_id AND t.tag = was.tag AND t.started_at = o.started_at
            AND t.trace_id = o.trace_id;
        RETURN NULL;
    END $$
    """,
    """
    INSERT INTO trace_tags (project_id, tag, started_at, trace_id)
    SELECT DISTINCT project_id, tag, started_at, trace_id FROM traces CROSS JOIN unnest(tags) AS tag
    """,
    """
    CREATE TRIGGER tags_added AFTER INSERT ON traces REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION tags_added()
    """,
    """
    CREATE TRIGGER tags_changed AFTER UPDATE ON traces REFERENCING OLD TABLE AS gone NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION tags_changed()
    """,
    """
    CREATE TRIGGER tags_gone AFTER DELETE ON traces REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION tags_gone()
    """,
    "DROP INDEX traces_tags",
)


def downgrade() -> None:
    op.create_index("traces_tags", "traces", ["tags"], postgresql_using="gin")
    for name in ("tags_added", "tags_changed", "tags_gone"):
        op.execute(f"DROP TRIGGER {name} ON traces")
        op.execute(f"DROP FUNCTION {name}()")
    op.drop_table("trace_tags")
    for name in ("sessions_added", "sessions_changed", "sessions_gone"):
        op.execute(f"DROP TRIGGER {name} ON traces")
        op.execute(f"DROP FUNCTION {name}()")
    op.execute("DROP FUNCTION sessions_counted_again(uuid[], text[])")
    op.drop_table("sessions")
    op.drop_index("pairs_failed", "pairs")
    op.drop_index("runs_children", "runs")
    op.drop_index("runs_deleted", "runs")
    op.drop_column("runs", "deleted_at")
    op.drop_table("score_history")
    op.drop_index("trace_scores_parked", "trace_scores")
    for column in ("name", "source", "data_type", "environment", "run"):
        op.drop_index(f"trace_scores_{column}", "trace_scores")
    op.create_index("trace_scores_run", "trace_scores", ["eval_run_id"])
    op.drop_column("trace_scores", "number")
    for index, table in (("spans_models", "spans"), ("traces_user", "traces"), ("traces_name", "traces")):
        op.drop_index(index, table)
    op.drop_index("traces_newest", "traces")
    op.create_index("traces_newest", "traces", ["project_id", sa.literal_column("started_at DESC"), "trace_id"])
    op.drop_column("traces", "span_count")
    for name in ("prompt_tokens", "completion_tokens", "total_tokens", "total_cost"):
        op.drop_column("traces", name)
        op.drop_column("spans", name)
    op.drop_table("idempotency_keys")
    op.drop_table("key_usage")
    op.drop_table("rate_limits")
    op.drop_column("projects", "description")
    op.drop_constraint("organizations_external_id_key", "organizations")
    op.drop_column("organizations", "external_id")
