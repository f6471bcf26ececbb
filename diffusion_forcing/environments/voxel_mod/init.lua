-- A player walked from outside: the program reads pictures from the screen and sends the next action, one command a line.
-- Commands come through the pipe <world>/commands; each is answered by one line in <world>/answers:
--   level X Z            height the map generator would let a player start at, or "none" (water, mountains)
--   emerge X Y Z R H     "ok" when the map within R nodes (H up and down) is there
--   place X Z YAW MARK   "none", or the player stands at a free, open place near by: a report
--   look YAW             "ok": the player looks there, so that the map around is sent
--   mark MARK            "ok": the number shown on the screen
--   step ACTION MARK     a report; ACTION is 0 forward, 1 left, 2 right
-- A report is: moved (0, 1), x, y, z, yaw, steps that can be walked ahead, to the left, to the right, and "clear" or what the eyes are in.
-- Between two commands the server waits for the pipe: nothing goes on without the program, and where the pipe ends the game ends.

local world = minetest.get_worldpath()
local commands = assert(io.open(world .. "/commands", "r"))
local answers = assert(io.open(world .. "/answers", "w"))

local FORWARD, LEFT = 0, 1
local STRIDE = 0.3 -- nodes a forward step
local TURN = math.rad(7.5)
local PITCH = 0.15 -- rad the view is turned down
local RADIUS, HEIGHT, EYES = 0.3, 1.75, 1.6 -- nodes: the body
local MAX_DROP = 3 -- nodes it walks down at once; one node up
local RISE, FALL = 0.34, 0.5 -- nodes a step the eyes follow the ground
local MIN_LIGHT = 7 -- of 15 at noon; darker places are not entered
local SIGHT = 14 -- steps looked ahead
local SIDE = math.rad(45)
local SEARCH = 8 -- nodes around a wanted place that are tried
local OPEN_STEPS, OPEN_WAYS = 10, 3 -- a place is open where so many of eight ways can be walked so far
local BITS, STRIP = 12, 16 -- of the mark; pixel rows above and below the picture it is shown in

local me = {x = 0, y = 0, z = 0, ground = 0, yaw = 0} -- y: of the feet as the eyes see it, on its way to the ground
local marks = {}
local busy = false

-- Nothing is written on the screen when the player joins.
minetest.get_server_status = function() return "" end
minetest.send_join_message = function() end

local function say(...)
	answers:write(table.concat({...}, " "), "\n")
	answers:flush()
end

local function round(v)
	return math.floor(v + 0.5)
end

local function node(x, y, z)
	return minetest.registered_nodes[minetest.get_node({x = x, y = y, z = z}).name]
end

-- Thin snow and plants are walked through; what is not loaded is a wall.
local function solid(kind)
	return not kind or kind.name == "ignore" or (kind.walkable and not kind.buildable_to)
end

local function wet(kind)
	return kind and kind.liquidtype ~= "none"
end

-- Whether the body fits at (x, z) between two heights, with nothing solid or wet in it.
local function fits(x, low, high, z)
	for nx = round(x - RADIUS), round(x + RADIUS) do
		for nz = round(z - RADIUS), round(z + RADIUS) do
			for ny = round(low + 0.01), round(high - 0.01) do
				local kind = node(nx, ny, nz)
				if solid(kind) or wet(kind) then return false end
			end
		end
	end
	return true
end

-- Height of the ground under the body, `ground` or below; nil where it is too deep, wet or dark.
local function footing(x, ground, z)
	for foot = ground, ground - MAX_DROP, -1 do
		for nx = round(x - RADIUS), round(x + RADIUS) do
			for nz = round(z - RADIUS), round(z + RADIUS) do
				local kind = node(nx, round(foot - 0.5), nz)
				if wet(kind) then return nil end
				if solid(kind) then
					local light = minetest.get_natural_light({x = round(x), y = round(foot + EYES), z = round(z)}, 0.5)
					return (light or 0) >= MIN_LIGHT and foot or nil
				end
			end
		end
	end
end

-- x, ground, z after a forward step from (x, ground, z), or nil where it is blocked. `feet` is where the eyes think the feet are.
local function forward(x, ground, z, yaw, feet)
	local nx, nz = x - math.sin(yaw) * STRIDE, z + math.cos(yaw) * STRIDE
	for foot = ground, ground + 1 do
		local top = math.max(foot, feet) + HEIGHT
		if fits(nx, foot, top, nz) and (foot == ground or fits(x, foot, top, z)) then
			local found = footing(nx, foot, nz)
			if found then return nx, found, nz end
		end
	end
end

-- Forward steps that can be walked from here in the direction `yaw`, at most SIGHT.
local function clearance(yaw)
	local x, ground, z = me.x, me.ground, me.z
	for steps = 0, SIGHT - 1 do
		x, ground, z = forward(x, ground, z, yaw, ground)
		if not x then return steps end
	end
	return SIGHT
end

local function open()
	local ways = 0
	for eighth = 0, 7 do
		if clearance(eighth * SIDE) >= OPEN_STEPS then ways = ways + 1 end
	end
	return ways >= OPEN_WAYS
end

-- The client moves the player in its next picture and turns it in the one after (Game::processClientEvents comes after updateCameraDirection).
local function show_player(player)
	player:set_pos({x = me.x, y = me.y, z = me.z})
	player:set_look_horizontal(me.yaw)
	player:set_look_vertical(PITCH)
end

local function paint(lit)
	return "blank.png^[noalpha^[colorize:" .. (lit and "#ffffff" or "#000000") .. ":255"
end

-- The mark in Gray code: from one number to the next a single bit changes, so no mixture of two pictures shows a third number.
local function show_mark(player, number)
	local code = bit.bxor(number, bit.rshift(number, 1))
	for place, pair in pairs(marks) do
		local lit = bit.band(bit.rshift(code, place), 1) == 1
		if pair.lit ~= lit then
			pair.lit = lit
			player:hud_change(pair.above, "text", paint(lit))
			player:hud_change(pair.below, "text", paint(lit))
		end
	end
end

local function report(moved)
	local kind = node(round(me.x), round(me.y + EYES), round(me.z))
	local inside = (solid(kind) or wet(kind)) and (kind and kind.name or "unknown") or "clear"
	say(moved and 1 or 0, string.format("%.3f %.3f %.3f %.4f", me.x, me.y, me.z, me.yaw),
		clearance(me.yaw), clearance(me.yaw + SIDE), clearance(me.yaw - SIDE), inside)
end

-- Height of the ground in a column under the sky or under trees, or nil where it is water or out of reach.
local function find_ground(x, level, z)
	for y = level + 24, level - 24, -1 do
		local kind = node(x, y, z)
		if wet(kind) then return nil end
		if solid(kind) and kind and minetest.get_item_group(kind.name, "leaves") + minetest.get_item_group(kind.name, "tree") == 0 then
			return y + 0.5
		end
	end
end

local function try_place(x, level, z)
	local ground = find_ground(x, level, z)
	if ground and fits(x, ground, ground + HEIGHT, z) and footing(x, ground, z) == ground then
		me.x, me.y, me.z, me.ground = x, ground, z, ground
		return open()
	end
end

-- Commands; one that returns true lets the server do its other work before the next.
local act = {}

function act.level(_, x, z)
	say(minetest.get_spawn_level(x, z) or "none")
end

function act.emerge(_, x, y, z, reach, height)
	busy = true
	local low, high = {x = x - reach, y = y - height, z = z - reach}, {x = x + reach, y = y + height, z = z + reach}
	minetest.emerge_area(low, high, function(_, _, remaining)
		if remaining == 0 then
			busy = false
			say("ok")
		end
	end)
	return true
end

function act.place(player, x, z, yaw, number)
	local level = minetest.get_spawn_level(x, z) or 0
	for reach = 0, SEARCH do
		for dx = -reach, reach do
			for dz = -reach, reach do
				if math.max(math.abs(dx), math.abs(dz)) == reach and try_place(x + dx, level, z + dz) then
					me.yaw = yaw
					show_player(player)
					show_mark(player, number)
					report(false)
					return true
				end
			end
		end
	end
	say("none")
end

function act.look(player, yaw)
	me.yaw = yaw
	show_player(player)
	say("ok")
	return true
end

function act.mark(player, number)
	show_mark(player, number)
	say("ok")
	return true
end

function act.step(player, action, number)
	local moved = false
	if action == FORWARD then
		local x, ground, z = forward(me.x, me.ground, me.z, me.yaw, me.y)
		if x then
			me.x, me.ground, me.z, moved = x, ground, z, true
		end
	else
		me.yaw = me.yaw + (action == LEFT and TURN or -TURN)
	end
	me.y = me.y + math.max(-FALL, math.min(RISE, me.ground - me.y))
	show_player(player)
	show_mark(player, number)
	report(moved)
	return action == FORWARD
end

minetest.register_on_joinplayer(function(player)
	minetest.set_timeofday(0.5)
	player:hud_set_flags({
		hotbar = false, healthbar = false, crosshair = false, wielditem = false, breathbar = false, minimap = false, basic_debug = false,
	})
	-- The sky has one colour, the fog's: what is too far to see ends in the sky and not before it.
	player:set_sky({type = "regular", clouds = false, sky_color = {day_sky = "#9fcdf2", day_horizon = "#9fcdf2"}})
	player:set_sun({visible = false, sunrise_visible = false})
	player:set_physics_override({gravity = 0, speed = 0, jump = 0})
	for place = 0, BITS - 1 do
		local function square(y, down)
			return player:hud_add({
				hud_elem_type = "image", text = paint(false), scale = {x = 10, y = STRIP - 4}, z_index = 1000,
				position = {x = 0, y = y}, offset = {x = 2 + place * 10, y = 2 * down}, alignment = {x = 1, y = down},
			})
		end
		marks[place] = {lit = false, above = square(0, 1), below = square(1, -1)}
	end
end)

minetest.register_globalstep(function()
	local player = minetest.get_connected_players()[1]
	if not player or busy then return end
	repeat
		local line = commands:read("*l")
		if not line then
			minetest.request_shutdown()
			return
		end
		local words = line:split(" ")
		local numbers = {}
		for i = 2, #words do numbers[i - 1] = tonumber(words[i]) end
		local pause = act[words[1]](player, unpack(numbers))
	until pause
end)
