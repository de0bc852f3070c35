-- Everything that users made in a database, one row for each object, for PostgreSQL 14 to 18. The search path has to be `pg_catalog`
-- alone: only then do casts such as `::regclass::text`, and the functions pg_get_*, qualify the names of all that users made.
-- Settings that say how constants are written have to be the same for what is compared: timezone, datestyle, intervalstyle,
-- extra_float_digits, bytea_output, quote_all_identifiers, standard_conforming_strings.
-- What a version lacks is read by way of `to_jsonb(row) ->> 'column'`.
with
    own (oid) as materialized (
        select unnest(array[/*own*/]::oid[])
    ),
    -- What came with an extension; and the constructors and casts that came with a range type.
    member as materialized (
        select classid, objid from pg_depend where refclassid = 'pg_extension'::regclass and deptype = 'e'
        union all
        select classid, objid from pg_depend where classid in ('pg_proc'::regclass, 'pg_cast'::regclass) and deptype = 'i'
    ),
    space as materialized (
        select tableoid, oid, quote_ident(nspname) as name, nspowner, nspacl
        from pg_namespace
        where nspname !~ '^pg_' and nspname <> 'information_schema'
    ),
    rel as materialized (
        select
            c.tableoid, c.oid, c.relkind, c.relpersistence, c.relispartition, c.relpartbound, c.reloftype, c.relrowsecurity,
            c.relforcerowsecurity, c.relreplident, c.relowner, c.relacl, c.reltoastrelid,
            space.name || '.' || quote_ident(c.relname) as name,
            'tablespace ' || quote_ident(t.spcname) as tablespace,
            'using ' || quote_ident(nullif(am.amname, 'heap')) as method,
            case
                when c.reloptions is not null then (select string_agg(o, ', ' order by o collate "C") from unnest(c.reloptions) o)
            end as options
        from pg_class c
        join space on space.oid = c.relnamespace
        left join pg_tablespace t on t.oid = c.reltablespace
        left join pg_am am on am.oid = c.relam
        where c.relkind in ('r', 'p', 'f', 'v', 'm', 'c', 'S', 'i', 'I')
            and c.oid <> all (select oid from own)
            and (c.tableoid, c.oid) not in (table member)
    ),
    parent as materialized (
        select
            inhrelid, bool_or(inhdetachpending) as pending,
            string_agg(inhparent::regclass::text, ', ' order by inhparent::regclass::text collate "C") as names
        from pg_inherits
        group by inhrelid
    ),
    -- The sequence of an identity column has no row, the column's tells of it.
    seq as materialized (
        select
            s.seqrelid, d.refobjid as relid, d.refobjsubid as attnum, d.deptype is not distinct from 'i' as identity,
            concat_ws(
                ' ', 'as', format_type(s.seqtypid, null), 'start', s.seqstart, 'increment', s.seqincrement, 'minvalue', s.seqmin,
                'maxvalue', s.seqmax, 'cache', s.seqcache, case when s.seqcycle then 'cycle' end
            ) as definition
        from pg_sequence s
        -- The limit has it look up those of the sequences, instead of all of a large catalog.
        left join lateral (
            select refobjid, refobjsubid, deptype
            from pg_depend
            where classid = 'pg_class'::regclass and objid = s.seqrelid and objsubid = 0
                and refclassid = 'pg_class'::regclass and deptype in ('a', 'i')
            limit 1
        ) d on true
    ),
    ind as materialized (
        select
            rel.tableoid, i.indexrelid, rel.name, p.names as parent, c.oid as conid, rel.options,
            concat_ws(
                ' ', rel.tablespace, case when not i.indisvalid then 'invalid' end, case when i.indisclustered then 'clustered' end,
                case when i.indisreplident then 'replica identity' end
            ) as marks
        from pg_index i
        join rel on rel.oid = i.indexrelid
        join rel on_rel on on_rel.oid = i.indrelid
        left join pg_constraint c on c.conindid = i.indexrelid and c.contype in ('p', 'u', 'x')
        left join parent p on p.inhrelid = i.indexrelid
    ),
    -- A null as definition: it has no row, but a comment on it has.
    thing (classid, objid, subid, kind, name, definition, owner, acl, acltype, more_rights) as (
        select tableoid, oid, 0, 'schema', name, '', nspowner, nspacl, 'n'::"char", null
        from space
        where (tableoid, oid) not in (table member)

        union all
        select
            tableoid, oid, 0, 'extension', quote_ident(extname),
            format('schema %s version %s', extnamespace::regnamespace, quote_literal(extversion)), extowner, null::aclitem[], null, null
        from pg_extension

        union all
        select
            t.tableoid, t.oid, 0, 'type', space.name || '.' || quote_ident(t.typname),
            case t.typtype
                when 'e' then (
                    select format('enum (%s)', string_agg(quote_literal(enumlabel), ', ' order by enumsortorder))
                    from pg_enum
                    where enumtypid = t.oid
                )
                when 'c' then (
                    select format(
                        'composite (%s)',
                        string_agg(
                            concat_ws(
                                ' ', quote_ident(a.attname), format_type(a.atttypid, a.atttypmod),
                                'collate ' || case when a.attcollation <> b.typcollation then a.attcollation::regcollation end
                            ),
                            ', ' order by a.attnum
                        )
                    )
                    from pg_attribute a
                    join pg_type b on b.oid = a.atttypid
                    where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
                )
                when 'd' then concat_ws(
                    ' ', 'domain', format_type(t.typbasetype, t.typtypmod),
                    (
                        select 'collate ' || t.typcollation::regcollation
                        from pg_type b
                        where b.oid = t.typbasetype and b.typcollation <> t.typcollation
                    ),
                    -- Not as `typdefault` has it, which knows the search path of the one who set it.
                    'default ' || pg_get_expr(t.typdefaultbin, 'pg_type'::regclass), case when t.typnotnull then 'not null' end,
                    (
                        select string_agg(
                            format('constraint %I %s', conname, pg_get_constraintdef(oid)), ' ' order by conname collate "C"
                        )
                        from pg_constraint
                        where contypid = t.oid and contype = 'c'
                    )
                )
                when 'r' then (
                    select concat_ws(
                        ' ', 'range of', format_type(r.rngsubtype, null),
                        'collate ' || case when r.rngcollation <> b.typcollation then r.rngcollation::regcollation end,
                        'operator class ' || case
                            when not o.opcdefault then o.opcnamespace::regnamespace || '.' || quote_ident(o.opcname)
                        end,
                        'canonical ' || nullif(r.rngcanonical, 0)::regproc, 'subtype_diff ' || nullif(r.rngsubdiff, 0)::regproc,
                        'multirange ' || r.rngmultitypid::regtype
                    )
                    from pg_range r
                    join pg_type b on b.oid = r.rngsubtype
                    join pg_opclass o on o.oid = r.rngsubopc
                    where r.rngtypid = t.oid
                )
                when 'b' then concat_ws(
                    ' ', 'base', 'input', t.typinput, 'output', t.typoutput, 'receive', t.typreceive, 'send', t.typsend,
                    'length', t.typlen, 'alignment', t.typalign, 'storage', t.typstorage, format('delimiter %L', t.typdelim),
                    'category', t.typcategory, case when t.typispreferred then 'preferred' end,
                    case when t.typbyval then 'by value' end, 'element ' || nullif(t.typelem, 0)::regtype, 'default ' || t.typdefault
                )
                when 'p' then 'shell'
            end,
            t.typowner, t.typacl, 'T', null
        from pg_type t
        join space on space.oid = t.typnamespace
        where case t.typtype
                when 'c' then t.typrelid in (select oid from rel where relkind = 'c')
                when 'b' then t.typcategory <> 'A'
                else true
            end
            and (t.tableoid, t.oid) not in (table member)

        union all
        select
            rel.tableoid, rel.oid, 0, 'sequence', rel.name,
            case
                when not seq.identity then concat_ws(
                    ' ', case rel.relpersistence when 'u' then 'unlogged' end, seq.definition,
                    'owned by ' || on_rel.name || '.' || quote_ident(a.attname)
                )
            end,
            rel.relowner, rel.relacl, 's', null
        from rel
        join seq on seq.seqrelid = rel.oid
        left join rel on_rel on on_rel.oid = seq.relid
        left join pg_attribute a on a.attrelid = seq.relid and a.attnum = seq.attnum
        where seq.relid is null or on_rel.oid is not null

        union all
        select
            rel.tableoid, rel.oid, 0, 'table', rel.name,
            concat_ws(
                ' ', case rel.relpersistence when 'u' then 'unlogged' end,
                case rel.relkind when 'r' then 'table' when 'p' then 'partitioned table' else 'foreign table' end,
                'of ' || nullif(rel.reloftype, 0)::regtype,
                case when rel.relispartition then 'partition of ' else 'inherits ' end || parent.names,
                pg_get_expr(rel.relpartbound, rel.oid), case when parent.pending then 'detach pending' end,
                'partition by ' || case when rel.relkind = 'p' then pg_get_partkeydef(rel.oid) end,
                'server ' || quote_ident(s.srvname),
                'options (' || (select string_agg(o, ', ' order by o collate "C") from unnest(f.ftoptions) o) || ')',
                rel.method, 'with (' || rel.options || ')',
                'with (' || (
                    select string_agg('toast.' || o, ', ' order by o collate "C")
                    from pg_class toast, unnest(toast.reloptions) o
                    where toast.oid = rel.reltoastrelid
                ) || ')',
                rel.tablespace,
                case when rel.relrowsecurity then 'enable row level security' end,
                case when rel.relforcerowsecurity then 'force row level security' end,
                'replica identity ' || case
                    when rel.relkind <> 'f'
                        then case rel.relreplident when 'n' then 'nothing' when 'f' then 'full' when 'i' then 'using index' end
                end
            ),
            rel.relowner, rel.relacl, 'r', null
        from rel
        left join parent on parent.inhrelid = rel.oid
        left join pg_foreign_table f on f.ftrelid = rel.oid
        left join pg_foreign_server s on s.oid = f.ftserver
        where rel.relkind in ('r', 'p', 'f')

        union all
        select
            rel.tableoid, rel.oid, 0, case rel.relkind when 'v' then 'view' else 'materialized view' end, rel.name,
            concat_ws(' ', rel.method, 'with (' || rel.options || ')', rel.tablespace, ltrim(pg_get_viewdef(rel.oid))),
            rel.relowner, rel.relacl, 'r', null
        from rel
        where rel.relkind in ('v', 'm')

        union all
        select
            rel.tableoid, rel.oid, a.attnum, 'column', rel.name || '.' || quote_ident(a.attname),
            case
                when rel.relkind in ('r', 'p', 'f') then concat_ws(
                    ' ', format_type(a.atttypid, a.atttypmod),
                    'collate ' || case when a.attcollation <> t.typcollation then a.attcollation::regcollation end,
                    case when a.attnotnull then 'not null' end, nullif(word.text, ''),
                    'generated ' || case a.attidentity when 'a' then 'always' when 'd' then 'by default' end || ' as identity',
                    '(' || identity.name || ' ' || seq.definition || ')',
                    case when not a.attislocal and not rel.relispartition then 'inherited' end
                )
                -- The definition of a view or of a type tells of its columns.
                when word.text <> '' or a.attacl is not null then word.text
            end,
            null, a.attacl, 'c',
            case
                when identity.relacl is not null
                    then 'sequence ' || nullif(
                        array(select unnest(identity.relacl)::text collate "C" order by 1)::text,
                        array(select unnest(acldefault('s', identity.relowner))::text collate "C" order by 1)::text
                    )
            end
        from rel
        join pg_attribute a on a.attrelid = rel.oid
        join pg_type t on t.oid = a.atttypid
        left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
        left join seq on seq.relid = a.attrelid and seq.attnum = a.attnum and seq.identity
        left join rel identity on identity.oid = seq.seqrelid
        cross join lateral (
            select concat_ws(
                ' ',
                case a.attgenerated
                    when '' then 'default ' || pg_get_expr(d.adbin, d.adrelid)
                    else format(
                        'generated always as %s %s',
                        pg_get_expr(d.adbin, d.adrelid), case a.attgenerated when 's' then 'stored' else 'virtual' end
                    )
                end,
                'storage ' || case
                    when a.attstorage <> t.typstorage
                        then case a.attstorage when 'p' then 'plain' when 'e' then 'external' when 'm' then 'main' else 'extended' end
                end,
                'compression ' || case a.attcompression when 'p' then 'pglz' when 'l' then 'lz4' end,
                'statistics ' || nullif(a.attstattarget, -1),
                -- `pg_attver` is the server's own (15.20 has it), and differs from one `create table` to the next.
                case
                    when a.attoptions[1] !~ '^pg_attver=' or cardinality(a.attoptions) > 1 then 'with (' || (
                        select string_agg(o, ', ' order by o collate "C") from unnest(a.attoptions) o where o !~ '^pg_attver='
                    ) || ')'
                end,
                case
                    when a.attfdwoptions is not null
                        then 'options (' || (select string_agg(o, ', ' order by o collate "C") from unnest(a.attfdwoptions) o) || ')'
                end
            ) as text
        ) word
        where rel.relkind in ('r', 'p', 'f', 'v', 'm', 'c') and a.attnum > 0 and not a.attisdropped

        union all
        select
            c.tableoid, c.oid, 0, 'constraint', rel.name || '.' || quote_ident(c.conname),
            case
                -- A not null is in the column's row (up to 17 it is no constraint); a foreign key of a partition in that of its parent.
                when case c.contype when 'n' then c.connoinherit or not c.convalidated when 'f' then c.conparentid = 0 else true end
                    then concat_ws(
                        ' ', pg_get_constraintdef(c.oid), 'with (' || ind.options || ')', nullif(ind.marks, ''),
                        'partition of ' || ind.parent, 'triggers: ' || firing.text,
                        case when not c.conislocal and not rel.relispartition then 'inherited' end
                    )
            end,
            null, null, null, null
        from pg_constraint c
        join rel on rel.oid = c.conrelid
        left join ind on ind.conid = c.oid
        -- Those of a foreign key do not fire after `disable trigger all`.
        left join (
            select
                tgconstraint,
                string_agg(
                    distinct (tgrelid::regclass || case tgenabled when 'D' then ' disabled' else ' replica' end) collate "C", ', '
                ) as text
            from pg_trigger
            where tgconstrindid <> 0 and tgenabled in ('D', 'R')
            group by tgconstraint
        ) firing on firing.tgconstraint = c.oid
        where c.contype in ('c', 'f', 'p', 'u', 'x', 'n')

        union all
        select c.tableoid, c.oid, 0, 'constraint', format('%s.%I.%I', space.name, t.typname, c.conname), null, null, null, null, null
        from pg_constraint c
        join pg_type t on t.oid = c.contypid
        join space on space.oid = t.typnamespace
        where (t.tableoid, t.oid) not in (table member)

        union all
        select
            ind.tableoid, ind.indexrelid, 0, 'index', ind.name,
            case
                when ind.conid is null then concat_ws(
                    ' ', pg_get_indexdef(ind.indexrelid), nullif(ind.marks, ''), 'partition of ' || ind.parent,
                    'statistics (' || target.text || ')'
                )
            end,
            null, null, null, null
        from ind
        left join (
            select attrelid, string_agg(format('%s: %s', attnum, attstattarget), ', ' order by attnum) as text
            from pg_attribute
            where attstattarget >= 0 and attnum > 0
            group by attrelid
        ) target on target.attrelid = ind.indexrelid

        union all
        select
            p.tableoid, p.oid, 0, 'function', format('%s.%I(%s)', space.name, p.proname, oidvectortypes(p.proargtypes)),
            case
                when p.prokind <> 'a' then rtrim(pg_get_functiondef(p.oid), E'\n')
                else concat_ws(
                    ' ', format('aggregate (%s) returns %s', pg_get_function_arguments(p.oid), pg_get_function_result(p.oid)),
                    'sfunc', a.aggtransfn, 'stype', format_type(a.aggtranstype, null), 'sspace ' || nullif(a.aggtransspace, 0),
                    'initcond ' || quote_literal(a.agginitval),
                    'finalfunc ' || nullif(a.aggfinalfn, 0)::regproc, case when a.aggfinalextra then 'finalfunc_extra' end,
                    'finalfunc_modify', a.aggfinalmodify, 'combinefunc ' || nullif(a.aggcombinefn, 0)::regproc,
                    'serialfunc ' || nullif(a.aggserialfn, 0)::regproc, 'deserialfunc ' || nullif(a.aggdeserialfn, 0)::regproc,
                    'msfunc ' || nullif(a.aggmtransfn, 0)::regproc, 'minvfunc ' || nullif(a.aggminvtransfn, 0)::regproc,
                    'mstype ' || format_type(nullif(a.aggmtranstype, 0), null), 'msspace ' || nullif(a.aggmtransspace, 0),
                    'minitcond ' || quote_literal(a.aggminitval),
                    'mfinalfunc ' || nullif(a.aggmfinalfn, 0)::regproc, case when a.aggmfinalextra then 'mfinalfunc_extra' end,
                    'mfinalfunc_modify', a.aggmfinalmodify, 'sortop ' || nullif(a.aggsortop, 0)::regoperator,
                    case a.aggkind when 'h' then 'hypothetical' when 'o' then 'ordered-set' end, 'parallel', p.proparallel
                )
            end,
            p.proowner, p.proacl, 'f', null
        from pg_proc p
        join space on space.oid = p.pronamespace
        left join pg_aggregate a on a.aggfnoid = p.oid
        where (p.tableoid, p.oid) not in (table member)

        union all
        select
            t.tableoid, t.oid, 0, 'trigger', rel.name || '.' || quote_ident(t.tgname),
            -- Those of a partition are in the row of its parent, unless they are on here and off there.
            case
                when t.tgparentid = 0 or t.tgenabled <> p.tgenabled then concat_ws(
                    ' ', pg_get_triggerdef(t.oid),
                    case t.tgenabled when 'D' then 'disabled' when 'R' then 'replica' when 'A' then 'always' end
                )
            end,
            null, null, null, null
        from pg_trigger t
        join rel on rel.oid = t.tgrelid
        left join pg_trigger p on p.oid = t.tgparentid
        where (t.tgparentid <> 0 or not t.tgisinternal) and t.tgconstrindid = 0 and (t.tableoid, t.oid) not in (table member)

        union all
        select
            e.tableoid, e.oid, 0, 'event trigger', quote_ident(e.evtname),
            concat_ws(
                ' ', 'on', e.evtevent,
                'when tag in (' || (select string_agg(t, ', ' order by t collate "C") from unnest(e.evttags) t) || ')',
                'execute', e.evtfoid::regprocedure,
                case e.evtenabled when 'D' then 'disabled' when 'R' then 'replica' when 'A' then 'always' end
            ),
            e.evtowner, null, null, null
        from pg_event_trigger e
        where (e.tableoid, e.oid) not in (table member)

        union all
        select
            p.tableoid, p.oid, 0, 'policy', rel.name || '.' || quote_ident(p.polname),
            concat_ws(
                ' ', 'as', case when p.polpermissive then 'permissive' else 'restrictive' end, 'for',
                case p.polcmd when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update' when 'd' then 'delete' else 'all' end,
                'to',
                (
                    select string_agg(r.name, ', ' order by r.name collate "C")
                    from (select case o when 0 then 'public' else o::regrole::text end from unnest(p.polroles) o) r (name)
                ),
                'using ' || pg_get_expr(p.polqual, p.polrelid), 'with check ' || pg_get_expr(p.polwithcheck, p.polrelid)
            ),
            null, null, null, null
        from pg_policy p
        join rel on rel.oid = p.polrelid
        where (p.tableoid, p.oid) not in (table member)

        union all
        select
            r.tableoid, r.oid, 0, 'rule', rel.name || '.' || quote_ident(r.rulename),
            concat_ws(
                ' ', pg_get_ruledef(r.oid), case r.ev_enabled when 'D' then 'disabled' when 'R' then 'replica' when 'A' then 'always' end
            ),
            null, null, null, null
        from pg_rewrite r
        join rel on rel.oid = r.ev_class
        where r.rulename <> '_RETURN' and (r.tableoid, r.oid) not in (table member)

        union all
        select
            o.tableoid, o.oid, 0, 'operator',
            format('%s.%s(%s, %s)', space.name, o.oprname, coalesce(nullif(o.oprleft, 0)::regtype::text, 'none'), o.oprright::regtype),
            concat_ws(
                ' ', 'function', o.oprcode::regprocedure, 'commutator ' || nullif(o.oprcom, 0)::regoperator,
                'negator ' || nullif(o.oprnegate, 0)::regoperator, 'restrict ' || nullif(o.oprrest, 0)::regproc,
                'join ' || nullif(o.oprjoin, 0)::regproc, case when o.oprcanhash then 'hashes' end,
                case when o.oprcanmerge then 'merges' end
            ),
            o.oprowner, null, null, null
        from pg_operator o
        join space on space.oid = o.oprnamespace
        -- Without a function it is but the name of one to come: of a commutator or a negator.
        where o.oprcode <> 0 and (o.tableoid, o.oid) not in (table member)

        union all
        select
            o.tableoid, o.oid, 0, o.kind, format('%s.%I using %I', space.name, o.name, am.amname),
            concat_ws(
                ' ', o.head,
                (
                    select string_agg(m.text, ', ' order by m.text collate "C")
                    from pg_depend d
                    left join pg_amop a on d.classid = a.tableoid and d.objid = a.oid
                    left join pg_opfamily f on f.oid = a.amopsortfamily
                    left join pg_amproc p on d.classid = p.tableoid and d.objid = p.oid
                    cross join concat(
                        'operator ' || a.amopstrategy || ' ' || a.amopopr::regoperator,
                        ' for order by ' || f.opfnamespace::regnamespace || '.' || quote_ident(f.opfname),
                        format('function %s (%s, %s) ', p.amprocnum, p.amproclefttype::regtype, p.amprocrighttype::regtype)
                            || p.amproc::regprocedure
                    ) m (text)
                    where d.refclassid = o.tableoid and d.refobjid = o.oid and d.classid in ('pg_amop'::regclass, 'pg_amproc'::regclass)
                )
            ),
            o.owner, null, null, null
        from (
            select
                c.tableoid, c.oid, c.opcname, c.opcnamespace, c.opcmethod, c.opcowner, 'operator class',
                concat_ws(
                    ' ', case when c.opcdefault then 'default' end, 'for type', c.opcintype::regtype,
                    'storage ' || nullif(c.opckeytype, 0)::regtype, 'family', f.opfnamespace::regnamespace || '.' || quote_ident(f.opfname)
                )
            from pg_opclass c
            join pg_opfamily f on f.oid = c.opcfamily
            union all
            select tableoid, oid, opfname, opfnamespace, opfmethod, opfowner, 'operator family', null
            from pg_opfamily
        ) o (tableoid, oid, name, namespace, method, owner, kind, head)
        join space on space.oid = o.namespace
        join pg_am am on am.oid = o.method
        where (o.tableoid, o.oid) not in (table member)

        union all
        select
            tableoid, oid, 0, 'cast', format('(%s as %s)', castsource::regtype, casttarget::regtype),
            concat_ws(
                ' ',
                case castmethod
                    when 'f' then 'with function ' || castfunc::regprocedure
                    when 'i' then 'with inout'
                    else 'without function'
                end,
                'as ' || case castcontext when 'a' then 'assignment' when 'i' then 'implicit' end
            ),
            null, null, null, null
        from pg_cast
        -- From here on, what an initdb makes has lower oids.
        where oid >= 16384 and (tableoid, oid) not in (table member)

        union all
        select
            c.tableoid, c.oid, 0, 'collation', space.name || '.' || quote_ident(c.collname),
            concat_ws(
                ' ', 'provider', case c.collprovider when 'c' then 'libc' when 'i' then 'icu' when 'b' then 'builtin' else 'default' end,
                -- 14 had no column for the locale of icu.
                'locale ' || quote_literal(
                    coalesce(j ->> 'colllocale', j ->> 'colliculocale', case c.collprovider when 'i' then c.collcollate end)
                ),
                case c.collprovider when 'c' then format('lc_collate %L lc_ctype %L', c.collcollate, c.collctype) end,
                'rules ' || quote_literal(j ->> 'collicurules'), case when not c.collisdeterministic then 'nondeterministic' end
            ),
            c.collowner, null, null, null
        from pg_collation c
        join space on space.oid = c.collnamespace
        cross join to_jsonb(c) j
        where (c.tableoid, c.oid) not in (table member)

        union all
        select
            c.tableoid, c.oid, 0, 'text search configuration', space.name || '.' || quote_ident(c.cfgname),
            concat_ws(
                ' ', 'parser', p.prsnamespace::regnamespace || '.' || quote_ident(p.prsname),
                (
                    select string_agg(format('%s: %s', m.alias, m.dictionaries), '; ' order by m.alias collate "C")
                    from (
                        select t.alias, string_agg(mapdict::regdictionary::text, ', ' order by mapseqno) as dictionaries
                        from pg_ts_config_map
                        join ts_token_type(c.cfgparser) t on t.tokid = maptokentype
                        where mapcfg = c.oid
                        group by t.alias
                    ) m
                )
            ),
            c.cfgowner, null, null, null
        from pg_ts_config c
        join space on space.oid = c.cfgnamespace
        join pg_ts_parser p on p.oid = c.cfgparser
        where (c.tableoid, c.oid) not in (table member)

        union all
        select
            d.tableoid, d.oid, 0, 'text search dictionary', space.name || '.' || quote_ident(d.dictname),
            concat_ws(' ', 'template', t.tmplnamespace::regnamespace || '.' || quote_ident(t.tmplname), d.dictinitoption),
            d.dictowner, null, null, null
        from pg_ts_dict d
        join space on space.oid = d.dictnamespace
        join pg_ts_template t on t.oid = d.dicttemplate
        where (d.tableoid, d.oid) not in (table member)

        union all
        select
            s.tableoid, s.oid, 0, 'statistics', space.name || '.' || quote_ident(s.stxname),
            -- pg_get_statisticsobjdef would give the columns in the order of the table.
            concat_ws(
                ' ',
                (
                    select format('(%s) on', string_agg(k, ', ' order by k))
                    from (
                        select case kind when 'd' then 'ndistinct' when 'f' then 'dependencies' when 'm' then 'mcv' end
                        from unnest(s.stxkind) kind
                    ) kinds (k)
                ),
                (
                    select string_agg(k, ', ' order by k collate "C")
                    from (
                        select quote_ident(attname) from pg_attribute where attrelid = s.stxrelid and attnum = any (s.stxkeys)
                        union all
                        select format('(%s)', unnest(pg_get_statisticsobjdef_expressions(s.oid)))
                    ) keys (k)
                ),
                'from', rel.name, 'statistics ' || nullif(s.stxstattarget, -1)
            ),
            s.stxowner, null, null, null
        from pg_statistic_ext s
        join space on space.oid = s.stxnamespace
        join rel on rel.oid = s.stxrelid
        where (s.tableoid, s.oid) not in (table member)

        union all
        select
            p.tableoid, p.oid, 0, 'publication', quote_ident(p.pubname),
            concat_ws(
                ' ', case when p.puballtables then 'for all tables' end,
                'for table ' || (
                    select string_agg(r.text, ', ' order by r.text collate "C")
                    from (
                        select concat_ws(
                            ' ', prrelid::regclass,
                            '(' || (
                                select string_agg(quote_ident(attname), ', ' order by attname collate "C")
                                from pg_attribute
                                where attrelid = prrelid and attnum = any (translate(to_jsonb(r) ->> 'prattrs', '[]', '{}')::int2[])
                            ) || ')',
                            -- As json, it is no expression that pg_get_expr would take, but the view has its text.
                            case
                                when to_jsonb(r) ->> 'prqual' is not null then (
                                    select 'where ' || (to_jsonb(t) ->> 'rowfilter')
                                    from pg_publication_tables t
                                    where t.pubname = p.pubname and t.schemaname = n.nspname and t.tablename = c.relname
                                )
                            end
                        ) as text
                        from pg_publication_rel r
                        join pg_class c on c.oid = r.prrelid
                        join pg_namespace n on n.oid = c.relnamespace
                        where r.prpubid = p.oid
                    ) r
                ),
                -- 14 has no table pg_publication_namespace, but all have what its rows depend on.
                'for tables in schema ' || (
                    select string_agg(s.refobjid::regnamespace::text, ', ' order by s.refobjid::regnamespace::text collate "C")
                    from pg_depend d
                    join pg_depend s on s.classid = d.classid and s.objid = d.objid and s.refclassid = 'pg_namespace'::regclass
                    where d.classid = to_regclass('pg_publication_namespace') and d.refclassid = p.tableoid and d.refobjid = p.oid
                ),
                'publish', case when p.pubinsert then 'insert' end, case when p.pubupdate then 'update' end,
                case when p.pubdelete then 'delete' end, case when p.pubtruncate then 'truncate' end,
                case when p.pubviaroot then 'via partition root' end,
                case to_jsonb(p) ->> 'pubgencols' when 's' then 'with stored generated columns' end
            ),
            p.pubowner, null, null, null
        from pg_publication p
        where (p.tableoid, p.oid) not in (table member)

        union all
        select
            s.tableoid, s.oid, 0, 'foreign server', quote_ident(s.srvname),
            concat_ws(
                ' ', 'type ' || quote_literal(s.srvtype), 'version ' || quote_literal(s.srvversion), 'foreign data wrapper',
                quote_ident(w.fdwname),
                'options (' || (select string_agg(o, ', ' order by o collate "C") from unnest(s.srvoptions) o) || ')'
            ),
            s.srvowner, s.srvacl, 'S', null
        from pg_foreign_server s
        join pg_foreign_data_wrapper w on w.oid = s.srvfdw
        where (s.tableoid, s.oid) not in (table member)

        union all
        select
            w.tableoid, w.oid, 0, 'foreign data wrapper', quote_ident(w.fdwname),
            concat_ws(
                ' ', 'handler ' || nullif(w.fdwhandler, 0)::regproc, 'validator ' || nullif(w.fdwvalidator, 0)::regproc,
                'options (' || (select string_agg(o, ', ' order by o collate "C") from unnest(w.fdwoptions) o) || ')'
            ),
            w.fdwowner, w.fdwacl, 'F', null
        from pg_foreign_data_wrapper w
        where (w.tableoid, w.oid) not in (table member)

        union all
        select
            tableoid, oid, 0, 'language', quote_ident(lanname),
            concat_ws(
                ' ', case when lanpltrusted then 'trusted' end, 'handler ' || nullif(lanplcallfoid, 0)::regproc,
                'inline ' || nullif(laninline, 0)::regproc, 'validator ' || nullif(lanvalidator, 0)::regproc
            ),
            lanowner, lanacl, 'l', null
        from pg_language
        where oid >= 16384 and (tableoid, oid) not in (table member)

        union all
        select
            tableoid, oid, 0, 'default privileges',
            concat_ws(
                ' ', 'for role', defaclrole::regrole, 'in schema ' || nullif(defaclnamespace, 0)::regnamespace, 'on',
                case defaclobjtype
                    when 'r' then 'tables' when 'S' then 'sequences' when 'f' then 'functions' when 'T' then 'types' when 'n' then 'schemas'
                    else 'large objects'
                end
            ),
            '', null, defaclacl, null, null
        from pg_default_acl
    )
select kind, name, definition, rights
from (
    select
        kind, name, definition,
        concat_ws(
            ' ', owner::regrole,
            -- A list of rights that says what would hold without it is left behind by a `grant` and its `revoke`.
            case
                when acl is not null
                    then nullif(
                        array(select unnest(acl)::text collate "C" order by 1)::text,
                        array(select unnest(acldefault(acltype, coalesce(owner, 0)))::text collate "C" order by 1)::text
                    )
            end,
            more_rights
        ) as rights
    from thing
    where definition is not null
    union all
    select 'comment', thing.kind || ' ' || thing.name, d.description, ''
    from thing
    join pg_description d on d.classoid = thing.classid and d.objoid = thing.objid and d.objsubid = thing.subid
) result
order by kind collate "C", name collate "C"
